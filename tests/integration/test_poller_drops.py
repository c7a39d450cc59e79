"""Dropped files, their ledger and the table of sources over the wire, on the stand-ins of S3, SQS and DynamoDB."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from poller.csv_drop import CsvDropSource
from poller.drop_bucket import DropBucket
from poller.files import Fate, FileEntry
from poller.ledger import TableLedger
from poller.settings import DropSettings
from poller.source import FullWalk, Page
from tests.contract.kinesis_peers import Server, start_ministack
from tests.integration.poller_stack import LOGIN, REGION
from tests.unit.test_poller_csv_drop import declared, notice, text
from tidegate import aws
from tidegate.bubble import CsvDrop, Env, Source, Stated
from tidegate.errors import Transient
from tidegate.source_table import SourceTable

LOCATION = {"LocationConstraint": REGION["AWS_REGION"]}


@pytest.fixture(scope="module")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_ministack(tmp_path_factory.mktemp("ministack"))
    yield server
    server.stop()


class Clients(NamedTuple):
    s3: Any
    sqs: Any
    table: SourceTable


@pytest.fixture
async def clients(ministack: Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Clients]:
    for name, value in {**REGION, **LOGIN, "AWS_ENDPOINT_URL": ministack.url}.items():
        monkeypatch.setenv(name, value)
    async with aws.client("s3") as s3, aws.client("sqs") as sqs, aws.client("dynamodb") as dynamodb:
        table = SourceTable(dynamodb, "sources")
        await asyncio.gather(table.ensure(), table.ensure())
        yield Clients(s3, sqs, table)


def source(clients: Clients, how: Source, bucket: str, queue: str, folder: Path) -> CsvDropSource:
    feed = how.feed
    assert isinstance(feed, CsvDrop)
    place = DropBucket(feed, bucket, clients.s3, queue, clients.sqs, asyncio.get_running_loop().time)
    settings = DropSettings(page_rows=2_000, folder=str(folder))
    return CsvDropSource(how, feed, place, TableLedger(clients.table), settings)


async def walk(made: CsvDropSource, mark: str = "") -> tuple[int, Page]:
    rows, page = 0, await made.fetch(FullWalk(), mark)
    while page.has_more:
        rows += len(page.rows)
        page = await made.fetch(page.following, mark)
    return rows + len(page.rows), page


def held(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_a_drop_from_its_notice_to_its_entry_in_the_ledger(clients: Clients, tmp_path: Path) -> None:
    await clients.s3.create_bucket(Bucket="drops", CreateBucketConfiguration=LOCATION)
    queue = (await clients.sqs.create_queue(QueueName="notices"))["QueueUrl"]
    how = declared(notices=Env("QUEUE"), stated=Stated(metadata="as-of", format="iso"))
    made = source(clients, how, "drops", queue, tmp_path)
    assert (await walk(made))[1].unchanged
    large = text(*(f"key{at}" for at in range(100_000))).encode()
    await clients.s3.put_object(Bucket="drops", Key="drops/Größe 1.csv", Body=large, Metadata={"as-of": "2026-01-01"})
    await clients.sqs.send_message(QueueUrl=queue, MessageBody=notice("drops/Gr%C3%B6%C3%9Fe+1.csv"))
    rows, last = await walk(made)
    assert rows == 100_000
    assert (await walk(made, last.mark))[1].unchanged
    left = await clients.sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["ApproximateNumberOfMessages"])
    assert left["Attributes"]["ApproximateNumberOfMessages"] == "0"
    assert held(tmp_path) == [], "nothing stays on the disk"
    entry = (await TableLedger(clients.table).entries(how.name))["drops/Größe 1.csv"]
    assert (entry.fate, entry.rows) == (Fate.DONE, 100_000)
    assert entry.stated_at == datetime(2026, 1, 1, tzinfo=UTC)


async def test_a_file_replaced_after_it_was_looked_at_is_not_read_for_the_other(
    clients: Clients, tmp_path: Path
) -> None:
    await clients.s3.create_bucket(Bucket="races", CreateBucketConfiguration=LOCATION)
    place = DropBucket(CsvDrop(bucket=Env("B"), prefix="", key="key"), "races", clients.s3, "", None, lambda: 0.0)
    await clients.s3.put_object(Bucket="races", Key="1.csv", Body=b"first")
    [found] = await place.look()
    await clients.s3.put_object(Bucket="races", Key="1.csv", Body=b"second")
    with (tmp_path / "file").open("wb") as file:
        with pytest.raises(Transient, match="meanwhile"):
            await place.fetch(found, file)
        [found] = await place.look()
        await place.fetch(found, file)
    assert (tmp_path / "file").read_bytes() == b"second"


async def test_of_two_who_write_the_same_revision_one_wins(clients: Clients) -> None:
    entry = FileEntry(name="x", etag="e", fate=Fate.DONE, at=datetime(2026, 1, 1, tzinfo=UTC))
    table = clients.table
    assert (await table.get("one", "x")).revision == 0
    assert sorted(await asyncio.gather(*(table.put("one", "x", entry, 0) for _ in range(5)))) == [False] * 4 + [True]
    item = await table.get("one", "x")
    assert (item.revision, item.read(FileEntry)) == (1, entry)
    assert sorted(await asyncio.gather(*(table.put("one", "x", entry, 1) for _ in range(5)))) == [False] * 4 + [True]
    assert await table.put("one", "x2", entry)
    assert [each.name for each in await table.items("one", "x")] == ["x", "x2"]
    await table.delete("one", "x")
    assert [each.name for each in await table.items("one", "x")] == ["x2"]
