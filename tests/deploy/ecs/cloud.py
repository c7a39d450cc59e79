"""A small cloud for the templates: the stand-in, a PostgreSQL behind TLS, and tasks that are run as ECS would.

    async with running(folder) as cloud:
        await cloud.deploy("network", "data")                   # k8s_or_ecs/ecs/deploy.sh, with the real command `aws`
        task = await cloud.task("parcels-worker")               # command and environment of the task definition
        async with cloud.started(task) as process: …

What a program gets is the environment of its task definition, secrets resolved as ECS does it. Only addresses are changed
(`redirected`): where AWS and the database are, and the port of the health server, which is each task's own on Fargate.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
from aiobotocore.session import get_session

from local import launch
from local.postgres import Postgres
from tests.deploy.ecs.tls import tls_only
from tests.integration.worker_stack import free_port, wait_for

ROOT = Path(__file__).resolve().parents[3]
TEMPLATES = ROOT / "k8s_or_ecs" / "ecs"
REGION = "eu-central-1"
LOGIN = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local", "AWS_EC2_METADATA_DISABLED": "true"}
_SERVICES = ("cloudformation", "ecs", "secretsmanager", "s3", "lambda", "cognito-idp", "dynamodb")


@dataclass(frozen=True, slots=True)
class Task:
    """What ECS would start: the words after the image's entry point, the environment, the health check's command."""

    command: list[str]
    environment: dict[str, str]
    health: list[str]


@dataclass(slots=True)
class Cloud:
    """One account with nothing in it but what was deployed."""

    url: str
    settings: Path
    postgres: Postgres
    database_port: int
    roots: Path
    folder: Path
    clients: dict[str, Any]

    @property
    def platform(self) -> dict[str, str]:
        """What Fargate itself gives to every task, and where AWS is here."""
        return {"AWS_REGION": REGION, "AWS_ENDPOINT_URL": self.url, **LOGIN}

    async def deploy(self, *words: str) -> str:
        """Run deploy.sh; returns what it printed. Fails the test when it does."""
        process = await asyncio.create_subprocess_exec(
            "bash", str(TEMPLATES / "deploy.sh"), str(self.settings), *words,
            env={**self.platform, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "AWS_PAGER": ""},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, stdin=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        output, _ = await process.communicate()
        text = output.decode()
        if process.returncode != 0:
            raise AssertionError(f"deploy.sh {' '.join(words)}:\n{text}\n{await self._why()}")
        return text

    async def _why(self) -> list[str]:
        """What CloudFormation says of resources that failed."""
        client = self.clients["cloudformation"]
        stacks = (await client.describe_stacks())["Stacks"]
        reasons: list[str] = []
        for stack in stacks:
            events = (await client.describe_stack_events(StackName=stack["StackName"]))["StackEvents"]
            reasons += [
                f"{stack['StackName']} {event['LogicalResourceId']}: {event.get('ResourceStatusReason')}"
                for event in events
                if "FAILED" in event["ResourceStatus"]
            ]
        return reasons

    async def outputs(self, stack: str) -> dict[str, str]:
        found = await self.clients["cloudformation"].describe_stacks(StackName=stack)
        return {each["OutputKey"]: each["OutputValue"] for each in found["Stacks"][0].get("Outputs", ())}

    async def secret(self, value_from: str) -> str:
        """As ECS reads it: arn:aws:secretsmanager:region:account:secret:name[:json-key:stage:version]."""
        parts = value_from.split(":")
        found = await self.clients["secretsmanager"].get_secret_value(SecretId=":".join(parts[:7]))
        text: str = found["SecretString"]
        return msgspec.json.decode(text, type=dict[str, str])[parts[7]] if len(parts) > 7 and parts[7] else text

    async def task(self, family: str, *verb: str) -> Task:
        """The newest revision of a task definition, its one container; `verb` overrides the command."""
        described = await self.clients["ecs"].describe_task_definition(taskDefinition=family)
        (container,) = described["taskDefinition"]["containerDefinitions"]
        environment = {each["name"]: each["value"] for each in container.get("environment", ())}
        for each in container.get("secrets", ()):
            environment[each["name"]] = await self.secret(each["valueFrom"])
        command = ["tidegate.cli", *verb] if verb else container["command"]
        return Task(command, environment, container.get("healthCheck", {}).get("command", []))

    def redirected(self, environment: Mapping[str, str], port: int = 0) -> dict[str, str]:
        """The environment with the addresses of this cloud."""
        changed = {**environment, **self.platform}
        if url := changed.get("TIDEGATE_DATABASE_URL"):
            address = urlsplit(url)
            query = address.query.replace("/etc/pki/tls/certs/ca-bundle.crt", str(self.roots))
            here = f"{address.username}@127.0.0.1:{self.database_port}"
            changed["TIDEGATE_DATABASE_URL"] = address._replace(netloc=here, query=query).geturl()
        if "PGSSLROOTCERT" in changed:
            changed["PGSSLROOTCERT"] = str(self.roots)
        if "TIDEGATE_HEALTH_PORT" in changed:
            changed |= {"TIDEGATE_HEALTH_HOST": "127.0.0.1", "TIDEGATE_HEALTH_PORT": str(port)}
        return changed

    @asynccontextmanager
    async def started(self, task: Task, name: str) -> AsyncIterator[Process]:
        """A service's task: ready when it says so; SIGTERM at the end of the block, and it must end with 0."""
        port = free_port()
        log = self.folder / f"{name}.log"
        argv = launch.command([sys.executable, "-m", *task.command], death_signal=signal.SIGKILL)
        environment = self.redirected(task.environment, port) | {"PYTHONPATH": str(ROOT)}
        with log.open("wb") as output:
            running = await asyncio.create_subprocess_exec(
                *argv, env=environment, cwd=ROOT, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output
            )
        process = Process(running, log, port, task)
        try:
            await wait_for(process.is_ready, 60)
            yield process
            running.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(running.wait(), 30) == 0, process.tail()
        finally:
            if running.returncode is None:
                running.kill()
                await running.wait()

    async def once(self, task: Task) -> str:
        """A one-off task; returns what it printed and fails the test when its exit code is not 0."""
        environment = self.redirected(task.environment) | {"PYTHONPATH": str(ROOT)}
        running = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *task.command, env=environment, cwd=ROOT,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, stdin=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        output, _ = await running.communicate()
        assert running.returncode == 0, output.decode()
        return output.decode()


@dataclass(frozen=True, slots=True)
class Process:
    """A task that runs."""

    running: asyncio.subprocess.Process
    log: Path
    port: int
    task: Task

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]

    async def is_ready(self) -> bool:
        assert self.running.returncode is None, self.tail()
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://127.0.0.1:{self.port}/readyz") as answer,
            ):
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    async def health_check(self) -> int:
        """The exit code of the task definition's own health check, asked at this task's port."""
        kind, *words = self.task.health
        assert kind == "CMD"
        argv = [sys.executable if word == "python" else word.replace(":8080", f":{self.port}") for word in words]
        check = await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.DEVNULL)
        return await check.wait()


@asynccontextmanager
async def running(folder: Path, settings: Mapping[str, str]) -> AsyncIterator[Cloud]:
    """Everything of the block. `settings` become the file that deploy.sh reads."""
    file = folder / "production.conf"
    file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    async with AsyncExitStack() as stack:
        postgres = Postgres(folder / "postgres")
        await postgres.prepare()
        _let_in_without_a_password(postgres, "reader_login")
        await stack.enter_async_context(postgres)
        roots = folder / "roots.pem"
        database_port = await stack.enter_async_context(tls_only(postgres.port, roots))
        url = await stack.enter_async_context(_stand_in(folder))
        options = {"endpoint_url": url, "region_name": REGION, "aws_access_key_id": "l", "aws_secret_access_key": "l"}
        clients = {
            service: await stack.enter_async_context(get_session().create_client(service, **options))
            for service in _SERVICES
        }
        yield Cloud(url, file, postgres, database_port, roots, folder, clients)


def _let_in_without_a_password(postgres: Postgres, login: str) -> None:
    """A login that signs in to RDS Proxy by its role; nobody here could check the token that it sends instead."""
    rules = postgres.folder / "cluster" / "pg_hba.conf"
    rules.write_text(f"host all {login} 127.0.0.1/32 trust\n{rules.read_text()}")


@asynccontextmanager
async def _stand_in(folder: Path) -> AsyncIterator[str]:
    port = free_port()
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(ROOT), "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port), "MINISTACK_REGION": REGION, "STATE_DIR": str(folder / "state"), "SFTP_ENABLED": "0",
        "DOCKER_HOST": f"unix://{folder}/none.sock", "IOT_MTLS_ENABLED": "0", "LOG_LEVEL": "WARNING",
    }  # fmt: skip
    with (folder / "stand-in.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *launch.command([sys.executable, "-m", "tests.deploy.ecs.stand_in"], death_signal=signal.SIGKILL),
            env=environment, cwd=folder, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"

    async def answers() -> bool:
        try:
            async with aiohttp.ClientSession() as session, session.get(f"{url}/_ministack/health") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    try:
        await wait_for(answers, 60)
        yield url
    finally:
        process.kill()
        await process.wait()
