"""The operator's verbs without a database: arguments, what a terminal is shown, and the version of a mended row."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.integration.worker_bubble import bubble
from tests.integration.worker_rows import change, gadget
from tidegate.cli import dead_letters_edit, main
from tidegate.cli.console import shown
from tidegate.cli.dead_letters import moment
from tidegate.cli.dead_letters_edit import version_after
from tidegate.cli.dead_letters_show import payload_lines
from tidegate.errors import Rejected
from tidegate.event import Version
from tidegate.letters import Selection

numbers = st.integers(0, 2**63 - 2)
versions = st.builds(Version, *[numbers] * 5)


@given(versions, numbers, numbers, numbers)
def test_a_mended_row_wins_over_what_is_there_and_loses_to_whatever_is_read_next(
    stored: Version, source_version: int, later_reads: int, translation: int
) -> None:
    mended = version_after(stored, source_version)
    assert mended > stored
    # The same state read again, by a translator of any revision; or a later state.
    state = max(source_version, stored.source_version)
    read_next = stored._replace(source_version=state, read=stored.read + 1 + later_reads, translation=translation)
    assert mended < read_next
    assert mended < read_next._replace(source_version=state + 1, epoch=0, read=0)
    assert mended < stored._replace(generation=stored.generation + 1, source_version=0)


def test_a_field_that_a_person_mistyped_is_said_although_events_may_have_more_fields() -> None:
    mended = change("A", 1, gadget("A"))
    assert dead_letters_edit._decode(bubble, mended)[1] == "A"
    with pytest.raises(Rejected, match="gadget has no field noet"):
        dead_letters_edit._decode(bubble, change("A", 1, gadget("A", noet="x")))


@given(numbers, st.integers(1, 2**31), numbers)
def test_a_mended_row_that_was_never_there_loses_to_every_poller(source_version: int, epoch: int, read: int) -> None:
    assert Version(0, 0, 0, 0, 0) < version_after(None, source_version) < Version(0, source_version, epoch, read, 1)


def test_an_erased_row_cannot_be_mended() -> None:
    with pytest.raises(Rejected, match="erase --undo"):
        version_after(Version(*[2**63 - 1] * 5), 1)


@given(st.text(), st.integers(1, 40))
def test_nothing_that_is_shown_moves_the_cursor(text: str, characters: int) -> None:
    assert shown(text).isprintable()
    assert len(shown(text, characters)) <= characters


@given(
    st.binary(max_size=200)
    | st.text(max_size=200).map(str.encode)
    | st.sampled_from([b'{"a": "\xc2\x9b"}', b'{"a": "\xff"}'])
)
def test_a_payload_is_shown_safely_whatever_it_is(payload: bytes) -> None:
    assert all(line.isprintable() for line in payload_lines(payload))


def test_a_payload_is_json_or_text_or_bytes() -> None:
    assert list(payload_lines(b'{"a":[1]}')) == ["{", '  "a": [', "    1", "  ]", "}"]
    assert list(payload_lines("naïve\x07\n{".encode())) == ["naïve\\x07", "{"]
    assert list(payload_lines(b"\xffA")) == ["00000000  ff 41                                            .A"]


def test_every_part_of_a_choice_becomes_a_condition_of_its_own() -> None:
    now = datetime.now(UTC)
    chosen = Selection(ids=(3, 4), groups=("f",), entity="e", stage="write", since=now)
    where, arguments = chosen.where()
    assert where == (
        "id = ANY ($1::bigint[]) AND fingerprint = ANY ($2::text[]) AND entity = $3 AND stage = $4 "
        "AND last_seen_at >= $5 AND resolved_at IS NULL"
    )
    assert arguments == [[3, 4], ["f"], "e", "write", now]
    assert Selection(resolved=True).where() == ("true", [])
    assert [Selection().is_everything, chosen.is_everything] == [True, False]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["list", "--since", "2025-01-31T12:00"], "leaves open which zone it means"),
        (["list", "--until", "yesterday"], "'yesterday' is no time"),
        (["list", "--until", "99999999999999d"], "is no time"),
        (["show", "0"], "'0' is no whole number above 0"),
        (["replay", "--all", "--per-second", "0"], "'0' is no number of records a second"),
        (["replay", "--all", "--per-second", "nan"], "'nan' is no number of records a second"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["dead-letters", *arguments])
    assert ended.value.code == 2
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["dead-letters", "list"], "TIDEGATE_DATABASE_URL is not set"),
        (["dead-letters", "edit", "1"], "no bubble named"),
        (["dead-letters", "drop", "1", "--all"], "--all means every open letter"),
        (["erase", "customer", "C1"], "no bubble named"),
        (["erase", "customer", "C1", "--bubble", "examples.parcels.bubble"], "TIDEGATE_DATABASE_URL is not set"),
    ],
)
def test_what_is_missing_is_one_clear_text(
    arguments: list[str], text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TIDEGATE_DATABASE_URL", raising=False)
    monkeypatch.delenv("TIDEGATE_BUBBLE", raising=False)
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert text in said.err
    assert said.out == ""


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("5m", 300), ("6h", 21_600), ("2d", 172_800)])
def test_a_time_may_be_an_age(text: str, seconds: int) -> None:
    earliest = datetime.now(UTC)
    asked = moment(text) + timedelta(seconds=seconds)
    assert earliest <= asked <= datetime.now(UTC)
