"""A back office as a process: command line, signals, and what survives SIGKILL."""

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

ROOT = Path(__file__).parent.parent.parent


async def started(*arguments: str, key: str | None = "a-key") -> Process:
    environment = {name: value for name, value in os.environ.items() if name != "LEGACY_API_KEY"}
    if key is not None:
        environment["LEGACY_API_KEY"] = key
    command = (sys.executable, "-m", "local.legacy", *arguments)
    return await asyncio.create_subprocess_exec(*command, env=environment, cwd=ROOT, stdout=PIPE, stderr=PIPE)


@asynccontextmanager
async def running(*arguments: str) -> AsyncIterator[tuple[Process, str]]:
    process = await started(*arguments)
    try:
        assert process.stdout is not None
        ready = (await asyncio.wait_for(process.stdout.readline(), 10)).decode()
        address = re.fullmatch(r"legacy \w+ ready on (http://127\.0\.0\.1:\d+)\n", ready)
        assert address, ready
        yield process, address[1]
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def refused(*arguments: str, key: str | None = "a-key") -> tuple[int, str]:
    process = await started(*arguments, key=key)
    _, said = await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode is not None
    return process.returncode, said.decode()


async def test_what_is_committed_survives_sigkill_and_life_goes_on(tmp_path: Path) -> None:
    arguments = ("parcels", "--data", str(tmp_path), "--rows", "200", "--no-manners", "--life", "300")
    async with running(*arguments) as (process, address), aiohttp.ClientSession() as session:
        async with session.post(f"{address}/_sim/burst", json={"creates": 100, "deletes": 30}) as response:
            last = (await response.json())["last_change"]
        async with session.get(f"{address}/_sim/changes?limit=100000") as response:
            before = await response.json()
        process.send_signal(signal.SIGKILL)
        await process.wait()
    assert last >= 130
    # No --life this time: the setting is kept.
    async with running(*arguments[:-2]) as (process, address), aiohttp.ClientSession() as session:
        async with session.get(f"{address}/_sim/stats") as response:
            stats = await response.json()
        assert (stats["life"], stats["changes_per_s"]) == (True, 300)
        async with session.get(f"{address}/_sim/changes?limit=100000") as response:
            after = await response.json()
        assert after[: len(before)] == before
        async with session.get(f"{address}/_sim/truth?entity=parcel") as response:
            assert len((await response.read()).splitlines()) > 200
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 5) == 0
        assert process.stderr is not None
        assert await process.stderr.read() == b""


async def test_the_same_seed_gives_the_same_rows(tmp_path: Path) -> None:
    async def names(folder: Path, seed: str) -> bytes:
        arguments = ("customers", "--data", str(folder), "--rows", "50", "--seed", seed)
        async with (
            running(*arguments) as (process, address),
            aiohttp.ClientSession() as session,
            session.get(f"{address}/_sim/truth?entity=customer") as response,
        ):
            truth = await response.read()
            process.send_signal(signal.SIGINT)
            assert await asyncio.wait_for(process.wait(), 5) == 0
            return truth

    first, second, other = await asyncio.gather(
        names(tmp_path / "1", "7"), names(tmp_path / "2", "7"), names(tmp_path / "3", "8")
    )
    assert first == second != other
    assert len(first.splitlines()) == 50


async def test_wrong_starts_end_with_one_line_and_exit_code_2(tmp_path: Path) -> None:
    data = ("--data", str(tmp_path))
    async with running("customers", "--data", str(tmp_path / "first"), "--rows", "1") as (_, address):
        port = address.rpartition(":")[2]
        cases: dict[str, tuple[tuple[str, ...], str | None]] = {
            "LEGACY_API_KEY is missing": (("parcels", *data), None),
            "usage: ": (("letters", *data), "k"),
            "--drops s3 needs --drops-bucket": (("flights", *data, "--drops", "s3"), "k"),
            "not a nightly window": (("parcels", *data, "--night", "two"), "k"),
            "address already in use": (("customers", *data, "--port", port), "k"),
        }
        outcomes = await asyncio.gather(*(refused(*arguments, key=key) for arguments, key in cases.values()))
    for text, (code, said) in zip(cases, outcomes, strict=True):
        assert code == 2
        assert text in said
        assert said.count("\n") == 1
