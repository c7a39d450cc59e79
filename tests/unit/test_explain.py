"""The verdict on one row from its facts, who may see it, and where Kinesis puts it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from msgspec.structs import replace

from tests.integration.library_bubble import Branch, Loan, bubble
from tidegate import explain
from tidegate.entity import describe
from tidegate.event import EntityKey, Version
from tidegate.explain import Facts, Filed, Observed, Stored, Verdict

KEY = EntityKey("loan", "L1")
NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def version(number: int) -> Version:
    return Version(0, number, 1, 1, 1)


def stored(number: int, *, deleted: bool = False, erased: bool = False, **viewers: str | None) -> Stored:
    return Stored(
        version=version(number), deleted=deleted, event_id="e", occurred_at=NOW, projected_at=NOW, erased=erased,
        viewers=viewers,
    )  # fmt: skip


def seen(number: int, state: str = "live") -> Observed:
    return Observed(source="loans", version=version(number), state=state)


def letter(number: int | None, state: str = "open", *, is_open: bool = True) -> Filed:
    known = None if number is None else version(number)
    return Filed(id=1, open=is_open, state=state, version=known, stage="write", reason="check", message="why")


@pytest.mark.parametrize(
    ("facts", "verdict"),
    [
        (Facts(key=KEY), Verdict.UNKNOWN),
        (Facts(key=KEY, observed=[seen(2)], stored=stored(2)), Verdict.APPLIED),
        (Facts(key=KEY, stored=stored(2)), Verdict.APPLIED),
        (Facts(key=KEY, observed=[seen(2, "gone")], stored=stored(2, deleted=True)), Verdict.DELETED),
        (Facts(key=KEY, observed=[seen(3)], stored=stored(2)), Verdict.UNDER_WAY),
        (Facts(key=KEY, observed=[seen(3)]), Verdict.UNDER_WAY),
        (Facts(key=KEY, observed=[seen(1)], stored=stored(2)), Verdict.STALE),
        (Facts(key=KEY, observed=[seen(3)], stored=stored(2), letters=[letter(3)]), Verdict.DEAD),
        (Facts(key=KEY, observed=[seen(3)], stored=stored(2), letters=[letter(3, "replayed")]), Verdict.REPLAYED),
        (Facts(key=KEY, observed=[seen(3)], stored=stored(2), letters=[letter(3, "parked")]), Verdict.PARKED),
        # A letter that the row has left behind, or that is closed, blocks nothing.
        (Facts(key=KEY, observed=[seen(3)], stored=stored(3), letters=[letter(2)]), Verdict.APPLIED),
        (Facts(key=KEY, observed=[seen(3)], stored=stored(3), letters=[letter(4, is_open=False)]), Verdict.APPLIED),
        (Facts(key=KEY, observed=[seen(3)], stored=stored(3), letters=[letter(None)]), Verdict.DEAD),
        (Facts(key=KEY, observed=[seen(3, "quarantined")], stored=stored(2)), Verdict.QUARANTINED),
        (Facts(key=KEY, observed=[seen(3)], stored=stored(9, deleted=True, erased=True)), Verdict.ERASED),
        # Who could not be asked has not said no.
        (Facts(key=KEY, unknown={"database": "away", "poller": "away"}), Verdict.NOT_TOLD),
        (Facts(key=KEY, observed=[seen(3)], unknown={"database": "away"}), Verdict.NOT_TOLD),
        (Facts(key=KEY, observed=[seen(3, "quarantined")], unknown={"database": "away"}), Verdict.QUARANTINED),
        (Facts(key=KEY, stored=stored(2), unknown={"poller": "away"}), Verdict.NOT_TOLD),
        (Facts(key=KEY, stored=stored(2), letters=[letter(3)], unknown={"poller": "away"}), Verdict.DEAD),
        (Facts(key=KEY, observed=[seen(2)], stored=stored(2), unknown={"stream": "away"}), Verdict.APPLIED),
    ],
)
def test_verdicts(facts: Facts, verdict: Verdict) -> None:
    assert explain.verdict(facts) is verdict
    assert f"loan L1: {verdict.upper()}: {explain.MEANINGS[verdict]}" in list(explain.lines(facts, [], NOW))


def test_every_verdict_has_a_meaning() -> None:
    assert explain.MEANINGS.keys() == set(Verdict)


def test_who_may_see_a_row_is_said_as_tokens_say_it() -> None:
    seen_by = explain.viewers(describe(Loan), bubble.viewers, stored(1, reader="7", guarantor=None))
    by_token = "username = reader-7 or scope holds tidegate/reader-7"
    assert seen_by == [f"reader 7, by reader (token: {by_token})", "every staff"]
    assert explain.viewers(describe(Branch), bubble.viewers, stored(1)) == ["everybody who is signed in"]
    assert explain.viewers(describe(Branch), bubble.viewers, stored(1, deleted=True)) == []
    assert explain.viewers(describe(Branch), bubble.viewers, None) == []


def test_the_shard_is_found_as_kinesis_finds_it() -> None:
    # printf 'a:b' | md5sum
    assert explain.partition(EntityKey("a", "b")) == 0xD8160C9B3DC20D4E931AEB4F45262155


def test_what_could_not_be_asked_is_not_told_as_absent() -> None:
    text = "\n".join(explain.lines(Facts(key=KEY, unknown={"database": "away", "poller": "unset"}), [], NOW))
    assert "there is none" not in text
    assert "nobody" not in text
    assert "index does not have" not in text
    assert "not known     database: away" in text


def test_content_is_told_only_when_it_was_collected() -> None:
    facts = Facts(key=KEY, stored=replace(stored(1), row={"state": "out"}))
    assert "row           state = 'out'" in list(explain.lines(facts, [], NOW))
