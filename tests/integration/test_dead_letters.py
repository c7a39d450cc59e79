"""Dead letters on the whole way: filed by a worker, looked at, mended and replayed by a person, resolved by the worker."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from tests.integration.letters_stack import cli, environment, letter_of, until_closed, working
from tests.integration.worker_rows import NOW, change, gadget, quarantined
from tests.integration.worker_stack import Stack, query, running, wait_for
from tidegate import codec
from tidegate.errors import Fatal
from tidegate.event import ChangeEvent, StreamEvent

pytestmark = pytest.mark.asyncio(loop_scope="module")

LETTERS = "dead-letters"
OPEN = "SELECT count(*) FROM tidegate.dead_letter WHERE resolved_at IS NULL"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    folder: Path = tmp_path_factory.mktemp("letters")
    async with running(folder) as made:
        await made.fresh_stream("letters", 1)
        with environment(made.environment()):
            async with working():
                yield made


@pytest_asyncio.fixture(loop_scope="module")
async def stack(whole: Stack) -> AsyncIterator[Stack]:
    yield whole
    await query(whole, "DELETE FROM tidegate.dead_letter")
    await query(whole, "DELETE FROM counters")


def total(number: int, value: object, version: int = 1) -> ChangeEvent:
    return change(str(number), version, {"number": number, "total": value}, entity="counter")


def edited(folder: Path, value: object) -> Path:
    path = folder / "edited.json"
    path.write_text(json.dumps(value))
    return path


def read_away(name: str) -> str:
    """The text of a file, which is removed."""
    text = Path(name).read_text()
    Path(name).unlink()
    return text


@asynccontextmanager
async def totals_are_small(stack: Stack) -> AsyncIterator[None]:
    """For the block the database refuses what it would otherwise take."""
    await query(stack, "ALTER TABLE counters ADD CONSTRAINT small CHECK (total < 100)")
    try:
        yield
    finally:
        await query(stack, "ALTER TABLE counters DROP CONSTRAINT small")


async def file(stack: Stack, *events: StreamEvent | bytes) -> None:
    """Put the events, which are to be filed, and wait until they are."""
    [(before,)] = await query(stack, "SELECT count(*) FROM tidegate.dead_letter")
    await stack.put(events)

    async def are_filed() -> bool:
        return await query(stack, "SELECT count(*) FROM tidegate.dead_letter") == [(before + len(events),)]

    await wait_for(are_filed)


async def test_a_group_is_replayed_once_its_cause_is_mended(stack: Stack) -> None:
    async with totals_are_small(stack):
        await file(stack, *(total(number, 100 + number) for number in range(1, 8)), b"garbage")
        groups = (await cli(LETTERS, "list", "--json")).json
        assert groups["letters"] == 8
        [seven, one] = groups["groups"]
        assert (seven["letters"], seven["stage"], seven["reason"], seven["entity"]) == (
            7, "write", "check_violation", "counter",
        )  # fmt: skip
        assert (one["letters"], one["reason"]) == (1, "undecodable")
        shown = await cli(LETTERS, "list")
        assert seven["fingerprint"] in shown.out
        assert 'constraint "small"' in shown.out
        # It fails again: the same letters, one try more.
        group = seven["fingerprint"]
        assert (await cli(LETTERS, "replay", "--group", group, "--json")).json["replayed"] == 7

        async def have_failed_again() -> bool:
            return await query(stack, "SELECT count(*) FROM tidegate.dead_letter WHERE attempts = 2") == [(7,)]

        await wait_for(have_failed_again)
        assert await query(stack, OPEN) == [(8,)], "a replay that fails files no second letter"
        states = {
            each["state"] for each in (await cli(LETTERS, "list", "--group", group, "--each", "--json")).json["each"]
        }
        assert states == {"failed again"}
    said = await cli(LETTERS, "replay", "--group", group, "--dry-run")
    assert said.out.startswith("would replay 7 letters")
    assert await query(stack, "SELECT max(replays) FROM tidegate.dead_letter") == [(1,)]
    await cli(LETTERS, "replay", "--group", group, "--per-second", "1000")
    numbers = [number for (number,) in await query(stack, "SELECT id FROM tidegate.dead_letter WHERE key IS NOT NULL")]
    assert await until_closed(stack, *numbers) == ["written"] * 7
    assert await query(stack, "SELECT number, total FROM counters ORDER BY 1") == [(n, 100 + n) for n in range(1, 8)]
    assert (await cli(LETTERS, "list", "--json")).json["letters"] == 1


async def test_a_late_record_that_fails_but_is_older_than_its_row_misses_nothing(stack: Stack) -> None:
    await stack.put([total(1, 5, version=7)])

    async def is_there() -> bool:
        return await query(stack, "SELECT total FROM counters") == [(5,)]

    # In one batch with the newer one it would be left out before the database sees it.
    await wait_for(is_there)
    async with totals_are_small(stack):
        await file(stack, total(1, 150, version=3), total(1, "much", version=4))
    numbers = [number for (number,) in await query(stack, "SELECT id FROM tidegate.dead_letter ORDER BY id")]
    assert await until_closed(stack, *numbers) == ["superseded"] * 2
    assert await query(stack, "SELECT total, _source_version FROM counters") == [(5, 7)]
    again = await cli(LETTERS, "replay", *numbers)
    assert again.code == 1
    assert "it is resolved; nothing is missing" in again.err


async def test_an_edited_letter_is_replayed_under_its_own_id_and_version(stack: Stack, tmp_path: Path) -> None:
    wrong = change("E", 5, gadget("E", pieces="many"))
    await file(stack, wrong)
    number = await letter_of(stack, "E")
    edit = (LETTERS, "edit", number, "--bubble", "tests.integration.worker_bubble", "--file")
    still_wrong = await cli(*edit, edited(tmp_path, gadget("E", pieces="some")))
    assert still_wrong.code == 1
    assert re.search(r"gadget: Expected `int`, got `str` - at `\$\S*\.pieces`", still_wrong.err)
    other_key = await cli(*edit, edited(tmp_path, gadget("F", pieces=4)))
    assert "the subject 'E' is not the key 'F'" in other_key.err
    good = edited(tmp_path, gadget("E", pieces=4))
    assert (await cli(*edit, good, "--dry-run")).out.startswith("would keep the edit of gadget:E at version 0.5.1.1.1")
    assert await query(stack, "SELECT edited_payload, edited_by FROM tidegate.dead_letter") == [(None, None)]
    assert (await cli(*edit, good, "--json")).json["version"] == "0.5.1.1.1"
    shown = (await cli(LETTERS, "show", number, "--json")).json
    assert shown["payload"]["data"]["pieces"] == "many", "what came stays"
    assert shown["edited_payload"]["data"]["pieces"] == 4
    assert shown["edited_by"]
    assert (await cli(LETTERS, "replay", number)).code == 0
    assert await until_closed(stack, number) == ["written"]
    stored = "SELECT pieces, _source_version, _event_id FROM gadgets WHERE number = 'E'"
    assert await query(stack, stored) == [(4, 5, wrong.event_id)]


async def test_the_persons_own_editor_opens(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await file(stack, total(1, "much"))
    number = await letter_of(stack, "1")
    edit = (LETTERS, "edit", number, "--bubble", "tests.integration.worker_bubble")

    def editor(change: str) -> None:
        script = tmp_path / "editor.py"
        script.write_text(f"import pathlib, sys\npath = pathlib.Path(sys.argv[1])\ntext = path.read_text()\n{change}\n")
        monkeypatch.setenv("VISUAL", f"'{sys.executable}' '{script}'")

    editor("pass")
    assert "nothing was changed" in (await cli(*edit)).err
    editor("sys.exit(3)")
    assert "ended with 3" in (await cli(*edit)).err
    monkeypatch.setenv("VISUAL", "no-such-editor")
    assert "which does not start" in (await cli(*edit)).err
    editor("path.write_text(text.replace('much', 'more'))")
    kept = re.search(r"your text is kept in (\S+):", (await cli(*edit)).err)
    assert kept is not None
    assert '"total": "more"' in read_away(kept[1])
    editor("path.write_text(text.replace('\"much\"', '42'))")
    assert (await cli(*edit)).out.startswith("kept the edit of counter:1")
    assert (await cli(LETTERS, "show", number, "--json")).json["edited_payload"]["data"] == {"number": 1, "total": 42}


async def test_an_edit_that_fails_again_stays_one_letter(stack: Stack, tmp_path: Path) -> None:
    async with totals_are_small(stack):
        await file(stack, total(1, "much"))
        number = await letter_of(stack, "1")
        path = edited(tmp_path, {"number": 1, "total": 150})
        await cli(LETTERS, "edit", number, "--bubble", "tests.integration.worker_bubble", "--file", path)
        await cli(LETTERS, "replay", number)

        async def has_failed_again() -> bool:
            return await query(stack, "SELECT stage, attempts FROM tidegate.dead_letter") == [("write", 2)]

        await wait_for(has_failed_again)
    await cli(LETTERS, "replay", number)
    assert await until_closed(stack, number) == ["written"]
    assert await query(stack, "SELECT total FROM counters") == [(150,)]


async def test_a_row_of_the_poller_is_marked_and_replayed_only_when_a_person_translated_it(
    stack: Stack, tmp_path: Path
) -> None:
    await stack.put([change("Q", 4, gadget("Q", revision=4))])
    raw = msgspec.structs.replace(
        quarantined("Q", observed_at=NOW + timedelta(seconds=5)), raw=b'{"NR": "Q", "ST": "?"}'
    )
    await file(stack, raw)
    number = await letter_of(stack, "Q")
    assert "translate (raw row)" in (await cli(LETTERS, "list")).out
    shown = (await cli(LETTERS, "show", number)).out
    assert "raise the source's `translation`" in shown
    assert '"NR": "Q"' in shown
    refused = await cli(LETTERS, "replay", number)
    assert refused.code == 1
    assert "the poller could not translate the row" in refused.err
    path = edited(tmp_path, gadget("Q", pieces=8, revision=4))
    said = await cli(LETTERS, "edit", number, "--bubble", "tests.integration.worker_bubble", "--file", path, "--json")
    assert said.json["version"] == "0.4.1.1.2", "after the row that is there, before whatever is read next"
    await query(stack, "ALTER TABLE gadgets ADD CONSTRAINT few CHECK (pieces < 5)")
    await cli(LETTERS, "replay", number)

    async def has_failed() -> bool:
        return await query(stack, "SELECT stage, attempts FROM tidegate.dead_letter") == [("write", 2)]

    await wait_for(has_failed)
    await query(stack, "ALTER TABLE gadgets DROP CONSTRAINT few")
    await cli(LETTERS, "replay", number)
    assert await until_closed(stack, number) == ["written"]
    pieces = "SELECT pieces FROM gadgets WHERE number = 'Q'"
    assert await query(stack, pieces) == [(8,)]
    # The back office shows the row once more, and its translator can read it by now.
    await stack.put([change("Q", 4, gadget("Q", pieces=9, revision=4), read=2)])

    async def is_the_newer() -> bool:
        return await query(stack, pieces) == [(9,)]

    await wait_for(is_the_newer)


async def test_what_is_no_event_is_shown_in_hexadecimal_and_edited_whole(stack: Stack, tmp_path: Path) -> None:
    await file(stack, b"\xff\x00garbage\x1b[2J")
    [(number,)] = await query(stack, "SELECT id FROM tidegate.dead_letter")
    shown = (await cli(LETTERS, "show", number)).out
    assert "ff 00 67 61 72" in shown
    assert "\x1b" not in shown
    assert (await cli(LETTERS, "show", number, "--json")).json["payload_base64"] == "/wBnYXJiYWdlG1sySg=="
    skipped = await cli(LETTERS, "replay", "--reason", "undecodable")
    assert (skipped.code, "cannot read the record either" in skipped.err) == (0, True)
    path = tmp_path / "record.json"
    path.write_bytes(codec.encode(total(3, 33)))
    edit = (LETTERS, "edit", number, "--bubble", "tests.integration.worker_bubble")
    assert (await cli(*edit, "--file", path)).out.startswith("kept the edit of counter:3")
    await cli(LETTERS, "replay", number)
    assert await until_closed(stack, number) == ["written"]
    assert await query(stack, "SELECT total FROM counters WHERE number = 3") == [(33,)]


async def test_drop_asks_before_it_closes_many_and_a_choice_must_be_made(stack: Stack) -> None:
    await file(stack, *(total(number, "much") for number in range(3)))
    for verb in ("drop", "replay"):
        said = await cli(LETTERS, verb)
        assert (said.code, said.err.startswith("tidegate: which letters?")) == (1, True)
    assert (await cli(LETTERS, "drop", "--entity", "counter", "--dry-run")).out == "would drop 3 letters\n"
    asked = await cli(LETTERS, "drop", "--entity", "counter")
    assert (asked.code, "add --yes if that is meant" in asked.err) == (1, True)
    assert await query(stack, OPEN) == [(3,)]
    assert (await cli(LETTERS, "drop", "--entity", "counter", "--yes", "--json")).json["dropped"] == 3
    assert await query(stack, "SELECT DISTINCT resolution FROM tidegate.dead_letter") == [("dropped",)]
    assert (await cli(LETTERS, "list", "--resolved", "--json")).json["letters"] == 3
    missing = await cli(LETTERS, "drop", "999999999")
    assert (missing.code, "there is no dead letter 999999999" in missing.err) == (1, True)


async def test_letters_are_chosen_by_what_they_say(stack: Stack) -> None:
    await file(stack, *(total(number, "much") for number in range(3)))
    for arguments, count in (
        (("--key", "2"), 1),
        (("--stage", "decode", "--source", "gadgets"), 3),
        (("--stage", "write"), 0),
        (("--since", "5m"), 3),
        (("--since", "2999-01-01T00:00Z"), 0),
        (("--until", "5m"), 0),
    ):
        assert (await cli(LETTERS, "list", *arguments, "--json")).json["letters"] == count, arguments


async def test_what_was_erased_stays_out_whatever_comes_through_the_stream(stack: Stack) -> None:
    first = total(7, 70, version=2)
    await stack.put([first])
    await file(stack, total(7, "a name", version=3))
    said = await cli("erase", "counter", "7", "--bubble", "tests.integration.worker_bubble", "--yes", "--json")
    assert (said.json["erased"]["row"], said.json["erased"]["dead_letters"]) == ("content", 1)
    [kept] = said.json["streams"]
    assert kept["name"] == "letters"
    day = datetime.fromisoformat(kept["until"]) - datetime.now(UTC)
    assert timedelta(hours=23) < day <= timedelta(hours=24), "the stream's own retention"
    # The old event again, a newer one, a newer one that cannot be read, a row of the poller; then one of another key.
    newer = msgspec.structs.replace(total(7, 71, version=9), source="backfill")
    row = msgspec.structs.replace(quarantined("7"), entity="counter", raw=b"a name")
    await stack.put([first, newer, total(7, "a name", version=10), row, total(8, 80)])

    async def have_come() -> bool:
        return await query(stack, "SELECT total FROM counters WHERE number = 8") == [(80,)]

    await wait_for(have_come)
    assert await query(stack, "SELECT total, _deleted FROM counters WHERE number = 7") == [(None, True)]
    assert await query(stack, "SELECT count(*) FROM tidegate.dead_letter") == [(0,)]
    await query(stack, "DELETE FROM tidegate.erasure")


async def test_a_database_that_refuses_nearly_everything_ends_the_worker_and_nothing_is_lost(whole: Stack) -> None:
    await whole.fresh_stream("refused", 1)
    limits = {
        "TIDEGATE_STREAM": "refused", "TIDEGATE_LEASE_TABLE": whole.table, "TIDEGATE_REJECT_MINIMUM": "50",
        "TIDEGATE_BATCH_LEAST_RECORDS": "300",
    }  # fmt: skip
    events = [total(number, number) for number in range(300)]
    async with totals_are_small(whole):
        await whole.put(events)
        with pytest.raises(ExceptionGroup) as ended:
            async with working(**limits) as worker:
                await worker
        assert ended.group_contains(Fatal, match="200 of 300 records within 60 s were rejected", depth=None)
        assert await query(whole, "SELECT count(*), max(number) FROM counters") == [(100, 99)]
        assert await query(whole, "SELECT count(DISTINCT key) FROM tidegate.dead_letter") == [(200,)]
    # The repaired release reads on where the other one stopped, and a replay makes good what that one filed.
    async with working(**limits):
        assert (await cli(LETTERS, "replay", "--all", "--per-second", "1000", "--json")).json["replayed"] == 200

        async def is_whole() -> bool:
            return await query(whole, "SELECT count(*), sum(total) FROM counters") == [(300, sum(range(300)))]

        await wait_for(is_whole)
    assert await query(whole, OPEN) == [(0,)]
    await query(whole, "DELETE FROM tidegate.dead_letter")
