"""Dropped files: which is read, what becomes of each, and that neither races nor bad files do harm."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from poller.csv_drop import CsvDropSource
from poller.files import Fate, FileEntry, names_in
from poller.source import FileRow, FullWalk, InFiles, Page, Position, Refused
from poller.unpacked import Unpacked, page_of
from tests.fakes.drop_s3 import DropWorld
from tests.fakes.poller_world import PLAIN_THINGS, PlainThing
from tidegate.bubble import CsvDrop, Env, RawRow, Source, Stated
from tidegate.errors import Transient

FEED = CsvDrop(bucket=Env("DROPS"), prefix="drops/", key="key", bad_rows=2, bad_percent=20)
STATED = Stated(pattern=r"-(\d{8})")


def translate(row: RawRow) -> PlainThing:
    return PlainThing(key=row["key"], content=int(row["content"]))


def declared(**feed: Any) -> Source:
    return replace(PLAIN_THINGS, feed=replace(FEED, **feed), translate=translate)


EXTRACTS = declared()
CHANGES = declared(holds="changes", stated=STATED)


def text(*keys: str, content: int = 1) -> str:
    return "key,content\n" + "".join(f"{key},{content}\n" for key in keys)


@asynccontextmanager
async def opened(world: DropWorld) -> AsyncIterator[CsvDropSource]:
    source = world.source()
    try:
        yield source
    finally:
        source.close()


async def walk(source: CsvDropSource, mark: str = "") -> tuple[list[str], Page]:
    """Every key of a walk, and its last page."""
    keys: list[str] = []
    page = await source.fetch(FullWalk(), mark)
    while True:
        keys += [row.get("key", "?") for row in page.rows]
        if not page.has_more:
            return keys, page
        page = await source.fetch(page.following, mark)


async def poll(source: CsvDropSource, at: Position) -> tuple[list[str], Position]:
    """Every key of a poll for changes, and where the next one begins."""
    keys: list[str] = []
    while True:
        page = await source.fetch(at)
        keys += [row.get("key", "?") for row in page.rows]
        at = page.following
        if not page.has_more:
            return keys, at


# ---------------------------------------------------------------- full extracts


async def test_the_newest_extract_is_read_page_by_page_and_once() -> None:
    world = DropWorld(EXTRACTS)
    world.s3.drop("drops/things-1.csv", text("old"))
    world.s3.drop("drops/things-2.csv", text(*"abcdefgh"))
    async with opened(world) as source:
        keys, last = await walk(source)
        assert keys == list("abcdefgh")
        assert (await walk(source, last.mark))[1].unchanged
    assert world.ledger.fates() == {"things-2.csv": "done", "things-1.csv": "superseded"}
    assert (world.ledger.files["drops/things-2.csv"].rows, world.s3.calls.count("get")) == (8, 1)


async def test_an_overwritten_extract_is_another_one() -> None:
    world = DropWorld(EXTRACTS)
    world.s3.drop("drops/1.csv", text("a"))
    async with opened(world) as source:
        _, last = await walk(source)
        world.s3.drop("drops/1.csv", text("a", "b"))
        keys, again = await walk(source, last.mark)
    assert keys == ["a", "b"]
    assert again.mark != last.mark


async def test_extracts_come_by_the_time_that_they_state() -> None:
    world = DropWorld(declared(stated=Stated(pattern=r"-(\d{8})", format="%d%m%Y")))
    world.s3.drop("drops/x-31122025.csv", text("old"))
    world.s3.drop("drops/x-01022026.csv", text("new"))
    async with opened(world) as source:
        keys, last = await walk(source)
        assert keys == ["new"]
        world.s3.drop("drops/x-01012026.csv", text("late"))
        assert (await walk(source, last.mark))[1].unchanged, "an extract that comes late is no news"
    assert world.ledger.fates()["x-01012026.csv"] == "superseded"


async def test_extracts_may_state_their_time_in_their_metadata() -> None:
    world = DropWorld(declared(stated=Stated(metadata="As-Of", format="iso")))
    world.s3.drop("drops/b.csv", text("old"), **{"as-of": "2026-01-01"})
    world.s3.drop("drops/a.csv", text("new"), **{"as-of": "2026-01-02T00:00:00+01:00"})
    world.s3.drop("drops/c.csv", text("older than any that says so"))
    async with opened(world) as source:
        assert (await walk(source))[0] == ["new"]
        heads = world.s3.calls.count("head")
        await walk(source)
    assert world.s3.calls.count("head") == heads == 3, "each version is asked once"


async def test_a_bad_extract_is_refused_whole_and_the_one_before_it_stays() -> None:
    world = DropWorld(EXTRACTS)
    world.s3.drop("drops/1.csv", text("a"))
    async with opened(world) as source:
        _, last = await walk(source)
        world.s3.drop("drops/2.csv", text("b", "c") + "x\ny\nz\n")
        for _ in range(3):
            assert (await walk(source, last.mark))[1].unchanged
        world.s3.drop("drops/2.csv", text("b"))
        assert (await walk(source, last.mark))[0] == ["b"], "dropped again, mended"
    assert world.s3.calls.count("get") == 3, "a refused file is not fetched again"


async def test_an_extract_that_is_overwritten_by_a_bad_one_stays_the_truth() -> None:
    world = DropWorld(EXTRACTS)
    world.s3.drop("drops/2.csv", text("a"))
    async with opened(world) as source:
        _, last = await walk(source)
        await walk(source, last.mark)
        world.s3.drop("drops/2.csv", text("b", "c") + "x\ny\nz\n")
        assert (await walk(source, last.mark))[1].unchanged
    for _ in range(3):
        async with opened(world) as source:
            assert (await walk(source, last.mark))[1].unchanged
    assert world.s3.calls.count("get") == 2, "a refused file is not fetched again"
    assert world.ledger.fates() == {"2.csv": "refused"}
    async with opened(world) as source:
        world.s3.drop("drops/1.csv", text("late"))
        assert (await walk(source, last.mark))[1].unchanged, "the order stands where it stood"
        assert (await walk(source))[1].unchanged, "what came before the truth is not it, whatever was lost"
        world.s3.drop("drops/2.csv", text("a"))
        assert (await walk(source, last.mark))[1].unchanged, "it is again what it was"
        world.s3.drop("drops/2.csv", text("b"))
        assert (await walk(source, last.mark))[0] == ["b"], "dropped again, mended"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (text(*"abcdefgh", content=1).replace(",1", ",one"), "8 of 8 rows cannot be translated; 1.csv line 2: Value"),
        ("id;content\n", "no column 'key'"),
        (gzip.compress(text(*"abc").encode(), mtime=0)[:-12], "cannot be unpacked"),
        (b"PK\x03\x04 and no more", "cannot be unpacked"),
        ("key,content\n", "no rows"),
    ],
)
async def test_what_a_file_is_refused_for_is_told(body: bytes | str, says: str) -> None:
    world = DropWorld(EXTRACTS)
    world.s3.drop("drops/1.csv", body)
    async with opened(world) as source:
        assert (await walk(source))[1].unchanged
    assert says in world.ledger.files["drops/1.csv"].reason


async def test_a_file_that_is_too_large_is_not_fetched() -> None:
    world = DropWorld(EXTRACTS)
    world.settings = replace(world.settings, most_bytes=10)
    world.s3.drop("drops/1.csv", text("a"))
    async with opened(world) as source:
        await walk(source)
    assert world.ledger.fates() == {"1.csv": "refused"}
    assert "get" not in world.s3.calls


@pytest.mark.parametrize("line", ["\n", "key,1\n"], ids=["blank", "rows"])
async def test_a_small_file_that_unpacks_to_far_too_much_is_refused(line: str) -> None:
    world = DropWorld(EXTRACTS)
    world.settings = replace(world.settings, most_bytes=100_000, most_unpacked_bytes=1_000_000)
    world.s3.drop("drops/1.csv", gzip.compress(("key,content\n" + line * 2_000_000).encode()))
    async with opened(world) as source:
        assert (await walk(source))[1].unchanged
    assert world.ledger.files["drops/1.csv"].reason == "it unpacks to more than the 1000000 bytes that are allowed"


async def test_packed_files_are_told_by_their_content() -> None:
    packed = BytesIO()
    with ZipFile(packed, "w") as archive:
        archive.writestr("b.csv", text("c"))
        archive.writestr("a.csv", text("a") + "broken\n" + "b,1\n")
        archive.writestr("readme.txt", "not for us")
        archive.writestr("__MACOSX/._a.csv", b"\x00\x05\x16\x07 what a Mac puts beside each file")
    world = DropWorld(declared(bad_percent=50))
    world.s3.drop("drops/1.csv", gzip.compress(text(*"xyz").encode()))
    async with opened(world) as source:
        assert (await walk(source))[0] == ["x", "y", "z"]
        world.s3.drop("drops/2.csv", packed.getvalue())
        page = await source.fetch(FullWalk())
    rows = [row for row in page.rows if isinstance(row, FileRow)]
    assert [(row.origin, row.fault) for row in rows] == [
        ("2.csv/a.csv line 2", ""), ("2.csv/a.csv line 3", "1 columns instead of 2"), ("2.csv/a.csv line 4", ""),
    ]  # fmt: skip


@pytest.mark.parametrize("code", ["PreconditionFailed", "NoSuchKey"])
async def test_a_file_replaced_or_deleted_between_looking_and_reading_is_tried_again(code: str) -> None:
    world = DropWorld(EXTRACTS)
    world.s3.drop("drops/1.csv", text("a"))
    world.s3.codes = ["", code]
    async with opened(world) as source:
        with pytest.raises(Transient, match="meanwhile") as caught:
            await source.fetch(FullWalk())
        assert not isinstance(caught.value, Refused)
        assert (await walk(source))[0] == ["a"]


@pytest.mark.parametrize("codes", [["NoSuchBucket"], ["", "AccessDenied"]])
async def test_a_bucket_that_refuses_ends_nothing(codes: list[str]) -> None:
    world = DropWorld(EXTRACTS)
    world.s3.drop("drops/1.csv", text("a"))
    world.s3.codes = codes
    async with opened(world) as source:
        with pytest.raises(Refused):
            await source.fetch(FullWalk())


async def test_a_walk_whose_file_was_let_go_begins_anew() -> None:
    world = DropWorld(EXTRACTS)
    world.s3.drop("drops/1.csv", text(*"abcdef"))
    async with opened(world) as source:
        page = await source.fetch(FullWalk())
        source.close()
        with pytest.raises(Transient, match="begins anew"):
            await source.fetch(page.following)
        assert (await walk(source))[0] == list("abcdef")


# ---------------------------------------------------------------- changes


async def test_files_of_changes_are_worked_through_once_each_in_their_order() -> None:
    world = DropWorld(CHANGES)
    world.s3.drop("drops/z-20260101.csv", text("a"))
    world.s3.drop("drops/a-20260103.csv", text("c"))
    world.s3.drop("drops/m-20260102.csv", text("b"))
    async with opened(world) as source:
        keys, at = await poll(source, InFiles())
        assert (keys, at) == (["a", "b", "c"], InFiles())
        world.s3.drop("drops/b-20251231.csv", text("late"))
        assert (await poll(source, at))[0] == ["late"]
        assert (await source.fetch(FullWalk())).unchanged, "there is nothing to sweep"
    assert set(world.ledger.fates().values()) == {"done"}
    async with opened(world) as source:
        assert (await poll(source, InFiles()))[0] == []


async def test_a_file_of_changes_that_says_no_time_is_refused_and_holds_up_no_other() -> None:
    world = DropWorld(CHANGES)
    world.s3.drop("drops/a.csv", text("x"))
    world.s3.drop("drops/b-20260101.csv", text("b"))
    async with opened(world) as source:
        assert (await poll(source, InFiles()))[0] == ["b"]
    assert world.ledger.fates() == {"a.csv": "refused", "b-20260101.csv": "done"}


@given(stop=st.integers(0, 12), before=st.booleans())
async def test_wherever_a_process_stops_the_next_one_goes_on_there(stop: int, before: bool) -> None:
    world = DropWorld(CHANGES)
    world.s3.drop("drops/1-20260101.csv", text(*"abcdefg"))
    world.s3.drop("drops/2-20260102.csv", text(*"hij"))
    keys: list[str] = []
    at: Position = InFiles()
    source = world.source()
    for call in range(40):
        page = await source.fetch(at)
        if call == stop:
            # The cursor may or may not have been written.
            source.close()
            source = world.source()
            if before:
                continue
        keys += [row["key"] for row in page.rows]
        at = page.following
        if not page.has_more:
            break
    source.close()
    assert keys == list("abcdefghij")
    assert world.ledger.fates() == {"1-20260101.csv": "done", "2-20260102.csv": "done"}


async def test_a_file_overwritten_while_it_is_in_hand_comes_again_whole() -> None:
    world = DropWorld(CHANGES)
    world.s3.drop("drops/1-20260101.csv", text(*"abcdefg"))
    async with opened(world) as source:
        page = await source.fetch(InFiles())
    world.s3.drop("drops/1-20260101.csv", text(*"abX"))
    async with opened(world) as source:
        assert (await poll(source, page.following))[0] == ["a", "b", "X"]


async def test_the_ledger_forgets_files_that_went_away_long_ago() -> None:
    world = DropWorld(CHANGES)
    old = datetime(2026, 1, 1, tzinfo=UTC)
    for number in range(1, 4):
        entry = FileEntry(name=f"drops/{number}-2026010{number}.csv", etag="e", fate=Fate.DONE, at=old, stated_at=old)
        world.ledger.files[entry.name] = replace(entry, stated_at=old + timedelta(days=number))
    world.s3.drop("drops/1-20260101.csv", text("a"))
    async with opened(world) as source:
        await poll(source, InFiles())
    assert set(world.ledger.fates()) == {"1-20260101.csv", "3-20260103.csv"}, "it is there; it is the newest"


def test_memory_holds_a_page_of_a_file_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "large.csv"
    path.write_text(text(*(f"{at:0400}" for at in range(20_000))))
    unpacked = Unpacked(path, "large.csv", FEED)
    tracemalloc.start()
    rows, count = unpacked.rows(), 0
    while page := page_of(unpacked, rows, 1_000):
        count += len(page)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000
    assert peak < path.stat().st_size / 4, "two pages, and a block of text"


# ---------------------------------------------------------------- notices


def notice(*names: str) -> str:
    records = [{"eventName": "ObjectCreated:Put", "s3": {"object": {"key": name, "size": 1}}} for name in names]
    return msgspec.json.encode({"Records": records}).decode()


async def test_notices_spare_the_listing_and_the_listing_finds_what_they_missed() -> None:
    world = DropWorld(declared(notices=Env("QUEUE"), list_s=60))
    async with opened(world) as source:
        await walk(source)
        world.s3.drop("drops/1 a.csv", text("a"))
        world.s3.notices = [
            notice("drops/1+a.csv", "elsewhere/2.csv", "drops/gone.csv"),
            "no notice",
            '{"Event": "s3:TestEvent"}',
        ]
        keys, last = await walk(source)
        assert (keys, world.s3.notices, world.s3.calls.count("list")) == (["a"], [], 1)
        world.s3.drop("drops/2.csv", text("b"))
        assert (await walk(source, last.mark))[1].unchanged, "nobody told"
        world.clock_s += 60
        assert (await walk(source, last.mark))[0] == ["b"]


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (notice("a%2Bb+c.csv"), ["a+b c.csv"]),
        (msgspec.json.encode({"Type": "Notification", "Message": notice("x")}).decode(), ["x"]),
        ('{"detail-type": "Object Created", "detail": {"object": {"key": "a+b.csv"}}}', ["a+b.csv"]),
        ("[]", []), ("", []), ('{"Records": [{"s3": {}}]}', []),
    ],
)  # fmt: skip
def test_notices_of_all_three_kinds_are_understood(body: str, names: list[str]) -> None:
    assert names_in(body) == names
