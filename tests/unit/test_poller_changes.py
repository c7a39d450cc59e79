"""One page: what is published, what is filed, and that one bad row touches no other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from poller.changes import QUARANTINE, Changes, Sight, distinct
from poller.index import Index
from poller.snapshot import Entry, State
from poller.translate import Reading
from tidegate import codec
from tidegate.bubble import Env, PageNumber, RawRow, Rest, Source
from tidegate.entity import EVERYONE, Entity, Meta, Reader
from tidegate.event import Cause, ChangeEvent, QuarantineRecord

NOW = datetime(2026, 11, 21, 5, 55, 3, tzinfo=UTC)


class Load(Entity):
    """Something on a lorry."""

    meta = Meta(collection="loads", key="number", version="changed_at", readers=(Reader(EVERYONE),))
    number: str
    weight: Decimal | None
    share: float
    count: int
    changed_at: datetime


def translate(row: RawRow) -> Any:
    made = row.get("made", {})
    fields = {"number": row["no"], "weight": Decimal("12.50"), "share": 0.5, "count": 1, "changed_at": NOW}
    return made if made == "nothing" else Load(**{**fields, **made})


def reading(translation: int = 1) -> Reading:
    feed = Rest(url=Env("URL"), path="/", rows="rows", key="no", paging=PageNumber(param="p", pages="n"))
    return Reading.of(Source(name="loads", entity=Load, feed=feed, translate=translate, translation=translation))


def see(*rows: dict[str, Any], index: Index | None = None, translation: int = 1, read: int = 5) -> Changes:
    changes = Changes(index or Index(), reading(translation))
    changes.see(rows, Sight(3, read, Cause.LIVE, NOW, False))
    return changes


def events(changes: Changes) -> list[Any]:
    return [codec.decode(record.data) for record in changes.records.values()]


def test_a_row_becomes_an_event() -> None:
    changes = see({"no": "A1", "made": {"changed_at": NOW.astimezone(None)}})
    (event,) = events(changes)
    assert isinstance(event, ChangeEvent)
    assert event.payload == {
        "number": "A1", "weight": "12.50", "share": 0.5, "count": 1, "changed_at": "2026-11-21T05:55:03Z",
    }  # fmt: skip
    micros = (NOW - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert event.version == (0, micros, 3, 5, 1)
    assert (event.cause, event.occurred_at, event.source) == (Cause.LIVE, NOW, "loads")
    assert list(changes.records) == ["load:A1"]
    assert changes.entries["A1"].version == event.version


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"name": "no key"}, "no_key"),
        ({"no": ""}, "no_key"),
        ({"no": 1.5}, "no_key"),
        ({"no": "A1", "made": "nothing"}, "invalid"),
        ({"no": "A1", "made": {"surprise": 1}}, "untranslatable"),
        ({"no": "A1", "made": {"number": "A2"}}, "invalid"),
        ({"no": "A1", "made": {"share": "much"}}, "invalid"),
        ({"no": "A1", "made": {"share": float("inf")}}, "invalid"),
        ({"no": "A1", "made": {"weight": Decimal("NaN")}}, "invalid"),
        ({"no": "A1", "made": {"count": 2**63}}, "invalid"),
        ({"no": "A1", "made": {"changed_at": datetime(2026, 1, 1)}}, "invalid"),
        ({"no": "A1", "made": 5}, "untranslatable"),
    ],
)
def test_a_bad_row_is_filed_whole_and_touches_no_other(row: dict[str, Any], reason: str) -> None:
    changes = see({"no": "B1"}, row, {"no": "B2"})
    good = [event for event in events(changes) if isinstance(event, ChangeEvent)]
    (filed,) = [event for event in events(changes) if isinstance(event, QuarantineRecord)]
    assert [event.key.key for event in good] == ["B1", "B2"]
    assert filed.reason == reason
    assert msgspec.json.decode(filed.raw) == msgspec.json.decode(msgspec.json.encode(row))
    # Once: the same row again is known.
    index = Index(changes.entries)
    assert see({"no": "B1"}, row, {"no": "B2"}, index=index).records == {}


def test_a_row_that_is_mended_replaces_its_quarantine() -> None:
    index = Index(see({"no": "A1", "made": 5}).entries)
    assert index.entries()["A1"].state is State.QUARANTINED
    (event,) = events(see({"no": "A1"}, index=index, read=6))
    assert isinstance(event, ChangeEvent)


def test_an_event_too_large_for_the_stream_is_filed_and_cut() -> None:
    changes = see({"no": "A1", "blob": "x" * 700_000}, {"no": "B" * 1_000_000})
    labels = changes.labels()
    assert (labels[Cause.LIVE], labels[QUARANTINE]) == (1, 1)
    assert all(len(record.data) < 1_000_000 for record in changes.records.values())


def test_a_new_translation_publishes_the_same_row_again_as_such() -> None:
    before = see({"no": "A1"})
    (event,) = events(see({"no": "A1"}, index=Index(before.entries), translation=2, read=6))
    assert event.cause is Cause.RETRANSLATE
    assert event.version > before.entries["A1"].version


def test_one_record_a_key_and_the_last_row_wins() -> None:
    changes = see({"no": "A1", "made": {"count": 1}}, {"no": "A1", "made": {"count": 2}})
    (event,) = events(changes)
    assert event.payload["count"] == 2


def test_of_a_key_twice_in_an_answer_the_newer_version_stays_and_the_later_of_equal_ones() -> None:
    newer = {"no": "A1", "made": {"count": 1}}
    older = {"no": "A1", "made": {"count": 2, "changed_at": NOW - timedelta(days=1)}}
    equal = {"no": "A1", "made": {"count": 3}}
    bad = {"no": "A1", "made": 5}
    other, nameless = {"no": "B1"}, {"name": "no key"}
    assert distinct([newer, other, older, nameless, nameless], reading()) == (newer, other, nameless, nameless)
    assert distinct([older, newer], reading()) == (newer,)
    assert distinct([newer, equal, older, bad], reading()) == (equal,)
    assert distinct([bad, older], reading()) == (older,)


ROWS = st.fixed_dictionaries(
    {"no": st.sampled_from(["A1", "A2", "B1", "B2", "Ü3", "", None, 1.5, 7])},
    optional={
        "made": st.sampled_from(
            [
                5, "nothing", {"count": 2}, {"number": "A2"}, {"share": "much"}, {"share": float("inf")},
                {"weight": None}, {"weight": Decimal("NaN")}, {"count": 2**63}, {"changed_at": datetime(2026, 1, 1)},
                {"changed_at": NOW.astimezone(timezone(timedelta(hours=2)))},
                {"changed_at": NOW - timedelta(days=1)},
            ]
        )
    },
)  # fmt: skip


@given(before=st.lists(ROWS, max_size=6), rows=st.lists(ROWS, max_size=12), keyed=st.booleans())
def test_rows_together_are_the_same_as_one_by_one(before: list[Any], rows: list[Any], keyed: bool) -> None:
    index = Index(see(*before).entries)
    sight = Sight(3, 6, Cause.LIVE, NOW, keyed)
    together, alone = Changes(index, reading()), Changes(index, reading())
    together.see(rows, sight)
    for row in rows:
        alone.see([row], sight)
    assert together.records == alone.records
    assert together.entries == alone.entries
    assert (together.doubted, together.seen, together.raws) == (alone.doubted, alone.seen, alone.raws)
    assert together.counts == alone.counts


def test_a_translator_that_recurses_for_ever_rejects_its_row() -> None:
    def endless(row: RawRow) -> Any:
        return endless(row)

    changes = Changes(Index(), reading()._replace(source=replace(reading().source, translate=endless)))
    changes.see([{"no": "A1"}], Sight(3, 5, Cause.LIVE, NOW, False))
    assert changes.labels()[QUARANTINE] == 1


def test_times_before_1970_are_version_0() -> None:
    (event,) = events(see({"no": "A1", "made": {"changed_at": datetime(1900, 1, 1, tzinfo=UTC)}}))
    assert event.version.source_version == 0


def test_a_deletion_keeps_generation_and_source_version() -> None:
    index = Index({"A1": Entry(4, 99, 2, 1, 1, b"x")})
    changes = Changes(index, reading())
    changes.bury("A1", Sight(3, 7, Cause.SWEEP, NOW, True))
    changes.bury("unknown", Sight(3, 7, Cause.SWEEP, NOW, True))
    (event,) = events(changes)
    assert (event.operation, event.payload, event.version) == ("delete", None, (4, 99, 3, 7, 1))


@pytest.mark.parametrize("cause", Cause)
def test_what_is_new_is_published_for_the_reason_that_it_was_asked_for(cause: Cause) -> None:
    changes = Changes(Index(), reading())
    changes.see([{"no": "A1"}, {"no": "A2"}], Sight(3, 5, cause, NOW, False))
    assert [event.cause for event in events(changes)] == [cause, cause]
    assert changes.labels() == {cause: 2}
