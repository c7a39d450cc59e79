"""The data folder of the embedded stack: places, secrets, who uses it, and whether it was left in good order."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tidegate.errors import Fatal

if sys.platform != "win32":
    import fcntl

_HIGHEST_PORT = 65535


class Folder:
    """`.data/` of one demo.

    logs/         one log for each program
    secrets.json  passwords and API keys, generated, mode 0600
    offices/      the back offices' databases; kept when the rest has to start afresh
    front/        everything downstream of them: stream, database, AWS stand-in
    in-order      there when the last run stopped everything in order
    """

    def __init__(self, root: Path, bubble: str) -> None:
        # Each bubble its own: their tables and back offices have nothing in common.
        self.root = root.absolute() / bubble
        self.logs = self.root / "logs"
        self.offices = self.root / "offices"
        self.front = self.root / "front"
        self._secrets_file = self.root / "secrets.json"
        self._in_order = self.root / "in-order"
        self._secrets: dict[str, str] = {}

    def secret(self, name: str) -> str:
        """The secret of that name, generated when first asked for."""
        if name not in self._secrets:
            # Cognito's default policy wants all four classes of characters.
            self._secrets[name] = f"{secrets.token_urlsafe(18)}-aA1"
            self._write_secrets()
        return self._secrets[name]

    @contextlib.contextmanager
    def opened(self, *, reset: bool) -> Iterator[None]:
        """Take the folder for this process, cleared where it has to be.

        The AWS stand-in saves its state only when it stops in order. After a crash it may know less than the
        database and the stream (key index, cursors, leases), so everything downstream starts afresh and is
        read again from the back offices, which keep their rows.

        Raises:
            Fatal: another demo uses the folder, or it cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / "lock").open("w")
        except OSError as error:
            raise Fatal(f"--data {self.root.parent}: {error}; choose a folder that you may write to") from error
        with lock:
            _take(lock.fileno(), self.root)
            if reset:
                shutil.rmtree(self.offices, ignore_errors=True)
                self._secrets_file.unlink(missing_ok=True)
            if reset or not self._in_order.exists():
                shutil.rmtree(self.front, ignore_errors=True)
            self._in_order.unlink(missing_ok=True)
            for place in (self.logs, self.offices, self.front):
                place.mkdir(exist_ok=True)
            self._read_secrets()
            yield

    def left_in_order(self) -> None:
        """Say that everything stopped as it should."""
        self._in_order.touch()

    def _read_secrets(self) -> None:
        self._secrets = {}
        if self._secrets_file.exists():
            self._secrets = msgspec.json.decode(self._secrets_file.read_bytes(), type=dict[str, str])

    def _write_secrets(self) -> None:
        draft = self._secrets_file.with_suffix(".draft")
        draft.touch(mode=0o600)
        draft.write_bytes(msgspec.json.encode(self._secrets))
        draft.replace(self._secrets_file)


class Ports:
    """Hands out ports of 127.0.0.1: the wanted one, or the next that is free."""

    def __init__(self) -> None:
        self._given: set[int] = set()

    def take(self, wanted: int) -> int:
        """Raises Fatal when none is free above `wanted`."""
        for port in range(wanted, _HIGHEST_PORT):
            if port not in self._given and _is_free(port):
                self._given.add(port)
                return port
        raise Fatal(f"no port is free from {wanted} on")


def _take(file: int, root: Path) -> None:
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise Fatal(f"{root} is in use by another demo; stop it, or choose another folder with --data") from error
    os.set_inheritable(file, False)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do, or a port that was closed a minute ago would look taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
