"""Cursor and index over the wire, on DynamoDB's and S3's stand-in: one winner, and what a crash leaves is read right."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from poller.cursor_store import DynamoCursorStore
from poller.index import Index
from poller.index_store import S3IndexStore
from poller.snapshot import Entry
from poller.source import Cursor, Progress, SinceTime
from poller.times import OLDEST
from tests.contract.kinesis_peers import Server, start_ministack
from tests.integration.poller_stack import LOGIN, REGION
from tidegate import aws
from tidegate.errors import Superseded

A, B, C = (Entry(0, at, 1, at, 1, bytes([at]) * 8) for at in (1, 2, 3))


@pytest.fixture(scope="module")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_ministack(tmp_path_factory.mktemp("ministack"))
    yield server
    server.stop()


@pytest.fixture
def endpoint(ministack: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**REGION, **LOGIN, "AWS_ENDPOINT_URL": ministack.url}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
async def cursors(endpoint: None) -> AsyncIterator[DynamoCursorStore]:
    async with aws.client("dynamodb") as client:
        store = DynamoCursorStore(client, "cursors")
        await asyncio.gather(store.ensure_table(), store.ensure_table())
        yield store


@pytest.fixture
async def s3(endpoint: None) -> AsyncIterator[Any]:
    async with aws.client("s3") as client:
        await client.create_bucket(
            Bucket="state", CreateBucketConfiguration={"LocationConstraint": REGION["AWS_REGION"]}
        )
        yield client
        for item in (await client.list_objects_v2(Bucket="state")).get("Contents", ()):
            await client.delete_object(Bucket="state", Key=item["Key"])
        await client.delete_bucket(Bucket="state")


async def test_an_epoch_never_falls_and_an_older_poller_is_superseded(cursors: DynamoCursorStore) -> None:
    first = await cursors.open("one", 100)
    assert (first.epoch, first.progress) == (100, Progress())
    progress = Progress(live=SinceTime(bound=OLDEST, page=3), loaded=True)
    moved = await cursors.advance(replace(first, progress=progress, journal=4, snapshot="one/snapshot/4-100"))
    second = await cursors.open("one", 50)
    assert (second.epoch, second.progress, second.journal) == (101, progress, 4)
    with pytest.raises(Superseded):
        await cursors.advance(moved)
    assert (await cursors.advance(second)).revision == second.revision + 1


async def test_a_write_whose_answer_was_lost_has_won_all_the_same(cursors: DynamoCursorStore) -> None:
    opened = await cursors.open("two", 1)
    wanted = replace(opened, journal=1)
    assert await cursors.advance(wanted) == await cursors.advance(wanted)


async def test_of_many_openings_each_gets_its_own_epoch(cursors: DynamoCursorStore) -> None:
    opened = await asyncio.gather(*(cursors.open("three", 1) for _ in range(4)))
    assert len({cursor.epoch for cursor in opened}) == 4


def cursor(**how: Any) -> Cursor:
    return Cursor(source="things", progress=Progress(), revision=1, epoch=7, **how)


async def test_a_journal_the_cursor_does_not_vouch_for_is_unsure(s3: Any) -> None:
    store = S3IndexStore(s3, "state")
    await store.append("things", 1, 7, {"a": A})
    await store.append("things", 2, 7, {"b": B})
    index = (await store.load(cursor(journal=1))).index
    assert index.get("a") == A
    assert index.get("b") == replace(B, unsure=True)


async def test_under_one_number_the_journal_of_the_highest_epoch_counts(s3: Any) -> None:
    store = S3IndexStore(s3, "state")
    await store.append("things", 1, 6, {"a": A, "z": C})
    await store.append("things", 1, 7, {"a": B})
    index = (await store.load(cursor(journal=1))).index
    assert index.get("a") == B
    assert index.get("z") == replace(C, unsure=True)


async def test_a_snapshot_replaces_journals_only_when_the_cursor_names_it(s3: Any) -> None:
    store = S3IndexStore(s3, "state")
    await store.append("things", 1, 7, {"a": A})
    await store.append("things", 2, 7, {"b": B})
    index = Index({"a": A, "b": B})
    name = await store.write_snapshot("things", 2, 7, index)
    before = await store.load(cursor(journal=2))
    assert dict(before.index.entries()) == {"a": A, "b": B}
    leftover = await store.load(cursor(journal=2, snapshot=name))
    assert dict(leftover.index.entries()) == {"a": replace(A, unsure=True), "b": replace(B, unsure=True)}
    named = cursor(journal=2, snapshot=name)
    await store.append("things", 3, 7, {"c": C})
    await store.clean_up(named, frozenset(), index)
    keys = [item["Key"] for item in (await s3.list_objects_v2(Bucket="state"))["Contents"]]
    assert keys == ["things/journal/000000000003-7", "things/segment/000000000002-7-0", name]
    after = await store.load(replace(named, journal=3))
    assert dict(after.index.entries()) == {"a": A, "b": B, "c": C}
    assert not after.is_orphaned


async def test_without_a_cursor_everything_is_unsure_and_numbers_go_on(s3: Any) -> None:
    store = S3IndexStore(s3, "state")
    await store.write_snapshot("things", 4, 7, Index({"a": A}))
    await store.append("things", 5, 7, {"b": B})
    opened = await store.load(cursor())
    assert (opened.journal, opened.is_orphaned) == (5, True)
    assert opened.index.get("b") == replace(B, unsure=True)
    assert opened.index.get("a") == replace(A, unsure=True)


async def test_a_journal_of_an_earlier_term_that_came_late_is_found_and_kept_until_then(s3: Any) -> None:
    store = S3IndexStore(s3, "state")
    await store.append("things", 1, 7, {"a": A})
    index = Index({"a": A})
    name = await store.write_snapshot("things", 1, 7, index)
    late = "things/journal/000000000001-6"
    await store.append("things", 1, 6, {"z": C})
    named = cursor(journal=1, snapshot=name)
    await store.clean_up(named, frozenset(), index)
    assert await store.strangers(named, frozenset()) == {late: {"z": C}}
    await store.clean_up(named, frozenset({late}), index)
    assert await store.strangers(named, frozenset()) == {}
