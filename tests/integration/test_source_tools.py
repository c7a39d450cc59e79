"""`tidegate sources …` against a running poller: what is asked takes effect within seconds, and is told."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from local.legacy.flights import FlightOffice
from poller.archive import S3Archive
from poller.drift import Shape
from poller.settings import SignalSettings
from poller.signals import TableSignals
from tests.contract.kinesis_peers import Server, start_ministack
from tests.integration.poller_stack import BUCKET, DROPS, LOGIN, REGION, ROOT, Stack, offices, running, wait_for
from tidegate import aws
from tidegate.cli import main
from tidegate.signals import CONTROL, SIGNAL, Control, Signal, Standing, State, Verb
from tidegate.source_table import SourceTable

FLIGHTS = "examples.flights.bubble"
FLEET = ("flight", "airline", "airport", "plane")
QUICK = {"TIDEGATE_SIGNALS_INTERVAL_S": "0.2", "TIDEGATE_ARCHIVE_BUCKET": BUCKET}


@pytest.fixture(scope="module")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_ministack(tmp_path_factory.mktemp("ministack"))
    yield server
    server.stop()


@pytest.fixture
def endpoint(ministack: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**REGION, **LOGIN, "AWS_ENDPOINT_URL": ministack.url, "AWS_ENDPOINT_URL_KINESIS": ""}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
async def stack(ministack: Server, endpoint: None, tmp_path: Path) -> AsyncIterator[Stack]:
    async with aws.client("s3") as s3:
        for bucket in (BUCKET, DROPS):
            location = {"LocationConstraint": REGION["AWS_REGION"]}
            await s3.create_bucket(Bucket=bucket, CreateBucketConfiguration=location)
        async with running(ministack, tmp_path) as made:
            made.environment |= QUICK
            yield made


class Person:
    """Types `tidegate sources …` and reads what it prints."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    async def types(self, *arguments: str, fails: bool = False) -> str:
        self._capsys.readouterr()
        code = await asyncio.to_thread(main, ["sources", arguments[0], "--bubble", FLIGHTS, *arguments[1:]])
        shown = self._capsys.readouterr()
        assert (code != 0) is fails, shown
        return shown.out + shown.err

    async def reads(self, *arguments: str) -> Any:
        return msgspec.json.decode(await self.types(*arguments, "--json"))


async def test_a_person_beside_a_running_poller(
    stack: Stack, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    person = Person(capsys)
    options = argparse.Namespace(drops="s3", drops_bucket=DROPS, drops_prefix="drops/", drops_pause_s=0.2)
    async with offices(stack, flights=(FlightOffice, options)), stack.poller(FLIGHTS) as process:
        for name, value in stack.environment.items():
            monkeypatch.setenv(name, value)
        await wait_for(lambda: stack.is_true("flights", *FLEET))
        shown = await person.reads("show", "flights")
        assert (shown["state"]["doing"], shown["state"]["keys"]) == ("polling", len(stack.reader.rows("flight")))
        await _paused(stack, person)
        await _errands(stack, person)
        await _tried(person)
        listed = await person.types("list")
        assert "airlines" in listed
        assert "polling" in listed
        planes = await person.reads("show", "planes")
        assert {entry["fate"] for entry in planes["files"]} <= {"done", "superseded"}
        assert planes["files"]
        assert await stack.stop(process) == 0


async def _paused(stack: Stack, person: Person) -> None:
    await person.types("pause", "flights", "--reason", "month end")

    async def is_paused() -> bool:
        return bool((await person.reads("show", "flights"))["state"]["doing"] == "paused")

    await wait_for(is_paused)
    assert "month end" in await person.types("show", "flights")
    await stack.tell("flights", "burst", {"creates": 5, "updates": 5, "corrections": 0, "deletes": 0})
    before = len(stack.reader.rows("flight"))
    await stack.reader.read()
    assert len(stack.reader.rows("flight")) == before
    await person.types("resume", "flights")
    await wait_for(lambda: stack.is_true("flights", "flight"))


async def _errands(stack: Stack, person: Person) -> None:
    key = next(iter(stack.reader.rows("flight")))
    resynced = await person.reads("resync", "flights", "--key", key)
    assert (resynced["standing"], resynced["published"]) == ("done", 1)
    backfilled = await person.reads("backfill", "flights", "--since", "0", "--again")
    assert backfilled["published"] >= len(stack.reader.rows("flight"))
    assert "compares every row" in await person.types("resync", "planes", "--key", "N1", fails=True)
    assert "done" in await person.types("sweep", "airports")
    retranslated = await person.reads("retranslate", "flights")
    assert (retranslated["standing"], retranslated["published"]) == ("done", 0)
    assert retranslated["rows"] > 0
    await stack.reader.read()
    assert await stack.is_true("flights", *FLEET)


async def _tried(person: Person) -> None:
    tried = (await person.reads("try", "flights", "--limit", "3"))["rows"]
    assert len(tried) == 3
    assert all(each["event"]["type"] == "tidegate.flight.upsert" and not each["error"] for each in tried)
    assert "no row with the key 'nobody'" in await person.types("try", "planes", "--key", "nobody", fails=True)
    dropped = await person.types("try", "planes", "--limit", "2")
    assert ".csv line 2" in dropped
    assert "entity " in dropped


async def test_who_stops_looking_does_not_stop_the_errand(endpoint: None, table: SourceTable) -> None:
    command = ["sources", "sweep", "flights", "--bubble", FLIGHTS, "--table", table.name]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tidegate.cli", *command, cwd=ROOT, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    assert b"no poller works on 'flights' now" in await process.stderr.readline()
    process.send_signal(signal.SIGINT)
    said = (await process.stderr.read()).decode()
    assert said == "sweep goes on without you; to look: tidegate sources show flights\n"
    assert await process.wait() == 130
    [asked] = await table.items("flights", SIGNAL)
    assert asked.read(Signal).standing is Standing.ASKED


# ---------------------------------------------------------------- the table's parts


@pytest.fixture
async def table(endpoint: None) -> AsyncIterator[SourceTable]:
    async with aws.client("dynamodb") as client:
        made = SourceTable(client, "signals")
        await made.ensure()
        yield made


def seen(signals: TableSignals) -> tuple[bool, str]:
    """Whether the source is paused, and which errand is next."""
    return signals.control.paused, "" if signals.errand is None else signals.errand.id


async def test_signals_are_seen_in_their_order_and_told_of(table: SourceTable) -> None:
    now = [0.0]
    signals = TableSignals(table, "one", SignalSettings(), lambda: now[0])
    at = datetime(2026, 11, 21, tzinfo=UTC)
    for number in ("2", "1"):
        await table.put("one", SIGNAL + number, Signal(id=number, verb=Verb.SWEEP, asked_at=at))
    await table.put("one", CONTROL, Control(paused=True))
    await signals.look()
    assert seen(signals) == (True, "1")
    first = (await table.get("one", SIGNAL + "1")).read(Signal)
    await signals.tell(msgspec.structs.replace(first, standing=Standing.DONE, rows=7), now=True)
    assert seen(signals) == (True, "2")
    assert (await table.get("one", SIGNAL + "1")).read(Signal).rows == 7
    await table.put("one", CONTROL, Control())
    await signals.look()
    assert seen(signals) == (True, "2"), "not before it is time"
    await table.put("one", SIGNAL + "3", State(at=at, owner="a newer release", epoch=1, doing="?"))
    now[0] += 2
    await signals.look()
    assert seen(signals) == (False, "2"), "what cannot be read is passed over"


async def test_old_signals_are_forgotten_and_state_and_shape_are_kept(table: SourceTable) -> None:
    now = [0.0]
    signals = TableSignals(table, "two", SignalSettings(), lambda: now[0])
    at = datetime(2026, 11, 21, tzinfo=UTC)
    for number in range(30):
        done = Signal(id=f"{number:02}", verb=Verb.SWEEP, asked_at=at, standing=Standing.DONE)
        await table.put("two", SIGNAL + done.id, done)
    for _ in range(2):
        await signals.look()
        now[0] += 2
    assert [item.name for item in await table.items("two", SIGNAL)] == [
        f"{SIGNAL}{number:02}" for number in range(10, 30)
    ]
    state = State(at=at, owner="me", epoch=1, doing="polling")
    await signals.say(state)
    await signals.say(msgspec.structs.replace(state, doing="paused"))
    assert (await table.get("two", "state")).read(State) == state, "not before it is time"
    assert await signals.shape() is None
    assert await signals.keep(Shape(fields={"a": ["text"]}, rows=3))
    kept = await signals.shape()
    assert kept is not None
    assert kept.fields == {"a": ["text"]}


async def test_archived_rows_come_back_in_their_order(endpoint: None) -> None:
    async with aws.client("s3") as s3:
        location = {"LocationConstraint": REGION["AWS_REGION"]}
        await s3.create_bucket(Bucket="archive", CreateBucketConfiguration=location)
        archive = S3Archive(s3, "archive")
        for number in (2, 10, 1):
            await archive.write("one", 7, number, [{"n": number, "text": "ü"}, {"n": -number}])
        names = await archive.names("one", None)
        assert [list(await archive.read(name)) for name in names] == [
            [{"n": number, "text": "ü"}, {"n": -number}] for number in (1, 2, 10)
        ]
        assert await archive.names("one", date(2999, 1, 1)) == []
