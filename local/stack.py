"""The whole chain on one machine: back offices, stream, database, AWS stand-in, poller, workers, API, page.

    folder = Folder(Path(".data"), "parcels")
    with folder.opened(reset=False):
        async with running(folder, "examples.parcels.bubble", say=print) as stack:
            ...

Programs that need nothing of each other start together. Addresses are fixed where the port is free.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from local import demo_spec, gateway, pages, provision
from local.demo_spec import BackOffice, Demo, User
from local.folder import Folder, Ports
from local.postgres import Postgres, PostgresError
from local.supervisor import Child, Program, StartFailed, Supervisor, http_ready
from tidegate import bubble as bubbles
from tidegate.bubble import Bubble, CsvDrop
from tidegate.errors import Fatal, TidegateError

PAGE_PORT = 8080
STREAM_SHARDS = 4
WORKERS = ("worker-1", "worker-2")
REGION = "eu-central-1"
ARRIVALS = "tidegate-arrivals"
USERS = "tidegate-users"
# What a child may know of this machine. Nothing of the user's own AWS account is among it.
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TEMP", "SYSTEMROOT", "VIRTUAL_ENV", "PYTHONPATH", "TZ")


@dataclass(frozen=True, slots=True)
class Office:
    """A back office that runs: its declaration and its address."""

    spec: BackOffice
    url: str

    @property
    def name(self) -> str:
        return self.spec.name


@dataclass(slots=True)
class Stack:
    """Handles to what runs."""

    bubble: Bubble
    path: str
    demo: Demo
    folder: Folder
    supervisor: Supervisor
    session: aiohttp.ClientSession
    say: Callable[[str], None]
    ports: Ports = field(default_factory=Ports)
    offices: list[Office] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    health: dict[str, str] = field(default_factory=dict)
    postgres: Postgres = field(init=False)
    deployment: gateway.Deployment = field(init=False)
    page_url: str = ""
    served: pages.Served = field(default_factory=pages.Served)
    _endpoints: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.postgres = Postgres(self.folder.front / "postgres", port=self.ports.take(5433), durable=True)

    def database(self, login: str) -> str:
        """The address of the database for one login."""
        return self.postgres.dsn_for(login, self.folder.secret(login), provision.DATABASE)

    def password(self, user: User) -> str:
        return self.folder.secret(f"user {user.username}")

    async def sign_in(self, username: str, password: str) -> gateway.Tokens:
        """Raises gateway.SignInRefused for a wrong name or password."""
        return await gateway.sign_in(self.deployment, username, password)

    def child(self, name: str) -> Child:
        return self.supervisor.child(name)

    async def start(self) -> None:
        """Start everything, in order of need.

        Raises:
            Fatal: something could not be started; the text names it and its log.
        """
        self._compose_environment()
        async with asyncio.TaskGroup() as together:
            together.create_task(self._start_database())
            together.create_task(self._start_stream())
            together.create_task(self._start_stand_in())
        async with asyncio.TaskGroup() as together:
            for spec in self.demo.back_offices:
                together.create_task(self._start_office(spec, self.ports.take(PAGE_PORT + 1)))
            together.create_task(self._deploy())
        async with asyncio.TaskGroup() as together:
            together.create_task(self._start_service("poller", "poller", "worker_login"))
            for name in WORKERS:
                together.create_task(self._start_service(name, "worker", "worker_login"))
            if self.bubble.inbound:
                own = {"TIDEGATE_STREAM": ARRIVALS, "TIDEGATE_LEASE_TABLE": "tidegate-arrival-leases"}
                together.create_task(self._start_service("arrivals", "worker.inbound", "worker_login", **own))

    # --- the programs, one function each -------------------------------------------------------

    async def _start_database(self) -> None:
        self.say("starting PostgreSQL")
        await self.postgres.prepare()
        # The supervisor must be able to start it again after a crash, so it runs the server, not `Postgres.start`.
        await self.supervisor.start(
            Program(
                "postgres",
                self.postgres.argv(),
                env=_inherited(),
                ready=self.postgres.is_ready,
                stop_signal=signal.SIGINT,
                user=self.postgres.user,
            )
        )
        passwords = {login: self.folder.secret(login) for login in (provision.OWNER, *provision.LOGINS)}
        owner = self.database(provision.OWNER)
        await provision.make_database(self.postgres.dsn, owner, passwords)
        await provision.migrate_database(owner, self.bubble, self.path)
        await provision.make_logins(self.postgres.dsn, passwords)

    async def _start_stream(self) -> None:
        self.say("starting the stream")
        url = self.environment["AWS_ENDPOINT_URL_KINESIS"]
        argv = [sys.executable, "-m", "local.kinesis", "--port", _port_of(url)]
        argv += ["--data", str(self.folder.front / "kinesis"), "--region", REGION]
        ready = http_ready(self.session, f"{url}/_health")
        await self.supervisor.start(Program("kinesis", argv, env=_inherited(), ready=ready))
        await provision.make_stream(self.environment, self.environment["TIDEGATE_STREAM"], STREAM_SHARDS)
        await provision.make_stream(self.environment, ARRIVALS, 1)

    async def _start_stand_in(self) -> None:
        self.say("starting the AWS stand-in")
        url = self.environment["AWS_ENDPOINT_URL"]
        place = self.folder.front / "ministack"
        environment = {
            **self.environment,
            "BIND_HOST": "127.0.0.1",
            "GATEWAY_PORT": _port_of(url),
            "MINISTACK_REGION": REGION,
            "PERSIST_STATE": "1",
            "STATE_DIR": str(place / "state"),
            "S3_PERSIST": "1",
            "S3_DATA_DIR": str(place / "s3"),
            "LOG_LEVEL": "WARNING",
            # It would otherwise reap containers of another stand-in on this machine, and listen on more ports.
            "DOCKER_HOST": f"unix://{place}/no-docker.sock",
            "SFTP_ENABLED": "0",
            "IOT_MTLS_ENABLED": "0",
        }
        ready = http_ready(self.session, f"{url}/_ministack/health")
        # What it knows it saves when it stops in order, so it cannot be replaced by a fresh one under way.
        await self.supervisor.start(
            Program(
                "aws", [sys.executable, "-m", "ministack"], env=environment, ready=ready, restart=False, stop_s=20.0
            )
        )
        await provision.make_buckets(self.environment, self._buckets())
        await provision.make_user_table(self.environment, USERS)

    async def _start_office(self, spec: BackOffice, port: int) -> None:
        self.say(f"starting the back office {spec.name}")
        url = f"http://127.0.0.1:{port}"
        bucket = self.environment.get(spec.bucket_env or "", "")
        args = [argument.replace("{bucket}", bucket) for argument in spec.args]
        argv = [sys.executable, "-m", spec.module, *args, "--port", str(port)]
        argv += ["--data", str(self.folder.offices / spec.name)]
        environment = {
            **_inherited(),
            **self._aws(),
            **spec.env,
            "LEGACY_API_KEY": self.folder.secret(f"key {spec.name}"),
        }
        ready = http_ready(self.session, f"{url}/_sim/health")
        await self.supervisor.start(Program(f"office-{spec.name}", argv, env=environment, ready=ready))
        if spec.url_env:
            self.environment[spec.url_env] = url
        if spec.key_env:
            self.environment[spec.key_env] = self.folder.secret(f"key {spec.name}")
        self.offices.append(Office(spec, url))
        self.offices.sort(key=lambda office: self.demo.back_offices.index(office.spec))

    async def _deploy(self) -> None:
        self.say("deploying the API")
        everybody = [*self.demo.users, *([self.demo.observer] if self.demo.observer else [])]
        users = [gateway.User(user.username, self.password(user), user.groups) for user in everybody]
        self.deployment = await gateway.deploy(
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            region=REGION,
            bubble=self.path,
            database_url=self.database("reader_login"),
            users=users,
            edge={**self._aws(), "TIDEGATE_INBOUND_STREAM": ARRIVALS, "TIDEGATE_USER_TABLE": USERS},
        )

    async def _start_service(self, name: str, module: str, login: str, **settings: str) -> None:
        self.say(f"starting {name}")
        port = self.ports.take(9101)
        environment = {
            **self.environment,
            "TIDEGATE_DATABASE_URL": self.database(login),
            "TIDEGATE_HEALTH_PORT": str(port),
            # On a laptop the stream and the tables may be gone already, and nobody wants to wait for an answer.
            "TIDEGATE_LEASES_DRAIN_BUDGET_S": "8",
            "TIDEGATE_NAME": name,
            **settings,
        }
        self.health[name] = f"http://127.0.0.1:{port}"
        ready = http_ready(self.session, f"{self.health[name]}/readyz")
        await self.supervisor.start(Program(name, [sys.executable, "-m", module], env=environment, ready=ready))

    # --- what they are told --------------------------------------------------------------------

    def _compose_environment(self) -> None:
        self.environment = {
            **_inherited(),
            **self._aws(),
            "TIDEGATE_BUBBLE": self.path,
            "TIDEGATE_STREAM": "tidegate-changes",
            "TIDEGATE_STATE_BUCKET": "tidegate-state",
            "TIDEGATE_LEASE_TABLE": "tidegate-worker-leases",
            "TIDEGATE_POLLER_LEASE_TABLE": "tidegate-poller-leases",
            "TIDEGATE_CURSOR_TABLE": "tidegate-cursors",
        }
        for source in self.bubble.sources:
            if isinstance(source.feed, CsvDrop):
                self.environment[source.feed.bucket.name] = "tidegate-drops"

    def _aws(self) -> dict[str, str]:
        if not self._endpoints:
            self._endpoints["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{self.ports.take(4566)}"
            self._endpoints["AWS_ENDPOINT_URL_KINESIS"] = f"http://127.0.0.1:{self.ports.take(4567)}"
        return {
            **self._endpoints,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def _buckets(self) -> set[str]:
        drops = {self.environment[s.feed.bucket.name] for s in self.bubble.sources if isinstance(s.feed, CsvDrop)}
        return {self.environment["TIDEGATE_STATE_BUCKET"], *drops}


@asynccontextmanager
async def running(folder: Folder, path: str, say: Callable[[str], None]) -> AsyncIterator[Stack]:
    """The stack of the bubble at `path`, with its page, until the block ends. `folder` is opened.

    Raises:
        Fatal: something could not be started, or died for good; the text names it and its log.
    """
    bubble, demo = bubbles.load(path), demo_spec.load(path)
    supervisor = Supervisor(folder.logs, say)
    try:
        async with aiohttp.ClientSession() as session, supervisor:
            stack = Stack(bubble, path, demo, folder, supervisor, session, say)
            await stack.start()
            async with pages.serving(_site(stack), stack.ports.take(PAGE_PORT)) as stack.page_url:
                yield stack
    except* (StartFailed, PostgresError, gateway.DeployFailed, TidegateError) as failures:
        raise Fatal(str(_first(failures))) from None
    finally:
        exit_codes = {child.name: child.exit_code for child in supervisor.children}
        if all(exit_codes.get(name) == 0 for name in _SAVES_AT_STOP):
            folder.left_in_order()


_SAVES_AT_STOP = ("aws", "postgres")


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    first = failures.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _site(stack: Stack) -> pages.Site:
    users = [
        pages.Person(username=user.username, password=stack.password(user), title=user.title)
        for user in stack.demo.users
    ]
    offices = [pages.Link(title=office.spec.title or office.name, url=office.url) for office in stack.offices]
    about = pages.About(title=stack.demo.title or stack.bubble.name, users=users, back_offices=offices)
    return pages.Site(api_url=stack.deployment.api_url, about=about, sign_in=stack.sign_in, served=stack.served)


def _inherited() -> dict[str, str]:
    return {
        **{name: os.environ[name] for name in _INHERITED if name in os.environ},
        "PYTHONUNBUFFERED": "1",
    }


def _port_of(url: str) -> str:
    return url.rpartition(":")[2]
