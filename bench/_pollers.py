"""What each side of the poll and sweep benchmarks does, in a process of its own.

tidegate   the poller's own source, term, loop and index, unmodified; what it would keep in DynamoDB and S3 is kept in
           memory (a journal for each page is still encoded), and events go to a Kinesis over HTTP
dlt        its REST source and one pipeline run; either into a destination that puts what comes on the same Kinesis, which is
           what a team writes that stretches it that far, or into one that throws everything away
plain      what people write by hand for the same comparison: a dictionary of digests, and a set of the keys seen
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import datetime
from io import BytesIO
from typing import Any

import aiohttp
import msgspec
from msgspec.structs import replace

from bench._office import key_of, row
from poller.calls import MOST_RECORDS
from poller.changes import MOST_RECORD_BYTES, Record
from poller.drift import ShapeWatch
from poller.index_store import S3IndexStore
from poller.loop import SourceLoop
from poller.publisher import KinesisPublisher
from poller.rest import RestSource
from poller.settings import LoopSettings, PublishSettings
from poller.snapshot import Entry, fingerprints
from poller.source import Cursor, Progress, SinceRevision
from poller.sweep import Sweep
from poller.term import Stores, Term
from poller.translate import Reading
from tidegate import aws, lifecycle
from tidegate.bubble import AfterKey, ByRevision, Env, Fields, Office, PageNumber, Reread, Rest, Source
from tidegate.entity import EVERYONE, Entity, Meta, Reader
from tidegate.event import Cause

PAGE_ROWS = 1_000
SWEEP_ROWS = 5_000
_ACCOUNT = {"AWS_DEFAULT_REGION": "eu-central-1", "AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}
_OFFICE = Office(name="bench", requests_per_s=1e6, concurrency=1)


class Parcel(Entity):
    meta = Meta(collection="parcels", key="number", version="revision", readers=(Reader(EVERYONE),))
    number: str
    revision: int
    status: str
    sender: str
    recipient: str
    weight_kg: float
    shipping_cost: float
    express: bool
    note: str
    changed_at: datetime


POLLED = Source(
    name="parcels", entity=Parcel, translate=Fields(Parcel),
    feed=Rest(
        url=Env("OFFICE_URL"), path="/pages", rows="rows", key="number", office=_OFFICE,
        paging=PageNumber(param="page", pages="pages", total="total", size_param="size", size=PAGE_ROWS),
    ),
)  # fmt: skip
SWEPT = Source(
    name="parcels", entity=Parcel, translate=Fields(Parcel),
    feed=Rest(
        url=Env("OFFICE_URL"), path="/rows", rows="rows", key="number", office=_OFFICE,
        paging=AfterKey(param="after", size_param="size", size=SWEEP_ROWS),
        reread=Reread(path="/by-key", param="key", size=100),
        changes=ByRevision(param="since", column="revision"),
    ),
)  # fmt: skip


class _Cursors:
    async def open(self, source: str, least_epoch: int) -> Cursor:
        return Cursor(source=source, progress=Progress(), revision=1, epoch=least_epoch)

    async def advance(self, cursor: Cursor) -> Cursor:
        return replace(cursor, revision=cursor.revision + 1)


class _Bucket:
    """An S3 client for which keeping costs nothing."""

    async def put_object(self, **_: Any) -> dict[str, Any]:
        return {}

    async def get_object(self, **_: Any) -> dict[str, Any]:
        return {"Body": _Nothing()}

    def get_paginator(self, _: str) -> _Bucket:
        return self

    async def paginate(self, **_: Any) -> AsyncIterator[dict[str, Any]]:
        yield {}


class _Nothing:
    async def read(self) -> bytes:
        return BytesIO().read()


class _Counted:
    """A publisher that counts."""

    most_record_bytes = MOST_RECORD_BYTES

    def __init__(self) -> None:
        self.records = 0

    async def publish(self, records: Sequence[Record]) -> None:
        self.records += len(records)

    async def watermark(self, source: str, as_of: datetime) -> None:
        return None


def _term(declared: Source, session: aiohttp.ClientSession, url: str, publisher: Any) -> Term:
    feed = declared.feed
    assert isinstance(feed, Rest)
    source = RestSource(declared, feed, session, {"OFFICE_URL": url})
    stores = Stores(_Cursors(), S3IndexStore(_Bucket(), "state"), publisher)
    reading = Reading.of(declared)._replace(watch=ShapeWatch(declared.drift))
    return Term(reading, source, stores, LoopSettings(), stop=asyncio.Event(), check=lambda: None)


# ---------------------------------------------------------------- poll


async def _tidegate_poll(office: str, kinesis: str, rows: int) -> float:
    os.environ["AWS_ENDPOINT_URL_KINESIS"] = kinesis
    async with aws.client("kinesis") as client, aiohttp.ClientSession() as session:
        settings = PublishSettings(shard_records_per_s=10**7, shard_bytes_per_s=10**10)
        publisher = KinesisPublisher(client, "stream", settings)
        term = _term(POLLED, session, office, publisher)
        loop = SourceLoop(term, publisher)
        await loop.open(1)
        lifecycle.settle_memory()
        started = time.perf_counter()
        while not term.progress.loaded:
            await loop.step()
        taken_s = time.perf_counter() - started
        assert len(term.index) == rows, len(term.index)
        return taken_s


def tidegate_poll(office: str, kinesis: str, rows: int) -> float:
    os.environ |= _ACCOUNT
    return asyncio.run(_tidegate_poll(office, kinesis, rows))


def dlt_poll(office: str, kinesis: str, rows: int) -> float:
    """To the same end: acknowledged by Kinesis, by the calls of the AWS SDK for Python with its usual settings."""
    os.environ |= {"AWS_ENDPOINT_URL_KINESIS": kinesis, **_ACCOUNT}
    from botocore.session import Session  # noqa: PLC0415  (the other sides need none of it)

    client = Session().create_client("kinesis")

    def put(items: list[dict[str, Any]]) -> None:
        entries = [{"PartitionKey": each["number"], "Data": msgspec.json.encode(each)} for each in items]
        assert client.put_records(StreamName="stream", Records=entries)["FailedRecordCount"] == 0

    return _dlt(office, rows, MOST_RECORDS, put)


def dlt_nowhere(office: str, _: str, rows: int) -> float:
    """To a destination that throws everything away."""
    return _dlt(office, rows, 10_000, lambda items: None)


def _dlt(office: str, rows: int, together: int, put: Callable[[list[dict[str, Any]]], None]) -> float:
    os.environ |= {"RUNTIME__DLTHUB_TELEMETRY": "false", "RUNTIME__LOG_LEVEL": "CRITICAL"}
    import dlt  # noqa: PLC0415  (the other sides need none of it)
    from dlt.sources.rest_api import rest_api_source  # noqa: PLC0415

    logging.disable(logging.CRITICAL)
    counted = 0

    @dlt.destination(batch_size=together, loader_file_format="typed-jsonl", name="bench")
    def take(items: Any, table: Any) -> None:
        nonlocal counted
        if table["name"] == "pages":
            counted += len(items)
            put(items)

    source = rest_api_source(
        {
            "client": {"base_url": office},
            "resources": [
                {
                    "name": "pages",
                    "primary_key": "number",
                    "endpoint": {
                        "path": "pages",
                        "params": {"size": PAGE_ROWS},
                        "data_selector": "rows",
                        "paginator": {
                            "type": "page_number",
                            "base_page": 1,
                            "page_param": "page",
                            "total_path": "pages",
                        },
                    },
                }
            ],
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        pipeline = dlt.pipeline("bench", destination=take, dataset_name="bench", pipelines_dir=folder)
        started = time.perf_counter()
        pipeline.run(source)
        taken_s = time.perf_counter() - started
    assert counted == rows, counted
    return taken_s


# ---------------------------------------------------------------- sweep


async def _tidegate_sweep(office: str, rows: int, every: int) -> float:
    publisher = _Counted()
    async with aiohttp.ClientSession() as session:
        term = _term(SWEPT, session, office, publisher)
        await term.open(1)
        for read, numbers in enumerate(_pages(rows), 1):
            stamps = fingerprints(_decoded(numbers))
            term.index.apply(
                {
                    key_of(number): Entry(0, number + 1, 1, read, 1, stamp)
                    for number, stamp in zip(numbers, stamps, strict=True)
                }
            )
        await term.advance(Progress(live=SinceRevision(bound=rows, at=rows, loaded=True), loaded=True))
        async with session.get(f"{office}/change", params={"every": every}):
            pass
        started = time.perf_counter()
        sweep = Sweep(term, Cause.SWEEP)
        while not await sweep.step():
            pass
        taken_s = time.perf_counter() - started
        expected = -(-rows // every)
        assert sweep.drift == {"deleted": expected, "changed": expected}, sweep.drift
        return taken_s


def tidegate_sweep(office: str, rows: int, every: int) -> float:
    return asyncio.run(_tidegate_sweep(office, rows, every))


def _pages(rows: int) -> Iterator[range]:
    return (range(at, min(rows, at + SWEEP_ROWS)) for at in range(0, rows, SWEEP_ROWS))


def _decoded(numbers: range) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = msgspec.json.decode(f"[{','.join(map(row, numbers))}]")
    return found


async def _plain_sweep(office: str, rows: int, every: int) -> float:
    known = {each["number"]: _digest(each) for numbers in _pages(rows) for each in _decoded(numbers)}
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{office}/change", params={"every": every}):
            pass
        started = time.perf_counter()
        seen: set[str] = set()
        changed, after = 0, ""
        while True:
            params = {"size": str(SWEEP_ROWS)} | ({"after": after} if after else {})
            async with session.get(f"{office}/rows", params=params) as answer:
                shown = msgspec.json.decode(await answer.read())["rows"]
            if not shown:
                break
            for each in shown:
                key = each["number"]
                seen.add(key)
                changed += known.get(key) != _digest(each)
            after = shown[-1]["number"]
        gone = known.keys() - seen
        taken_s = time.perf_counter() - started
    assert (len(gone), changed) == (-(-rows // every), -(-rows // every))
    return taken_s


def _digest(row: dict[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(row, order="deterministic")).hexdigest()


def plain_sweep(office: str, rows: int, every: int) -> float:
    return asyncio.run(_plain_sweep(office, rows, every))
