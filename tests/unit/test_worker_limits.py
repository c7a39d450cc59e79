"""The breaker, the pace of the calls, and what each error of the database means."""

from __future__ import annotations

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.database import CLASSES, CODES, database_errors, translate, verdict_of
from tidegate.errors import Fatal, Rejected, Transient
from worker.dead_letter import Breaker
from worker.pace import ReadPace
from worker.settings import RejectSettings

LIMITS = RejectSettings(window_s=10.0, share=0.5, minimum=4)


def test_the_breaker_needs_both_the_number_and_the_share() -> None:
    breaker = Breaker(LIMITS)
    breaker.note(3, 3, 0.0)
    breaker.note(97, 20, 1.0)
    with pytest.raises(Fatal, match="TIDEGATE_REJECT_SHARE"):
        breaker.note(100, 90, 2.0)


def test_the_breaker_forgets_what_is_older_than_its_window() -> None:
    breaker = Breaker(LIMITS)
    breaker.note(3, 3, 0.0)
    breaker.note(3, 3, 10.5)
    breaker.note(2, 0, 11.0)
    with pytest.raises(Fatal):
        breaker.note(1, 1, 12.0)


@given(st.lists(st.tuples(st.floats(0, 0.5), st.integers(0, 300)), min_size=1, max_size=60), st.integers(1, 5))
def test_no_second_holds_more_calls_than_allowed(steps: list[tuple[float, int]], calls: int) -> None:
    pace = ReadPace(calls, 100)
    now_s, answered = 100.0, 0
    starts: list[float] = []
    for pause_s, size_bytes in steps:
        now_s += pause_s
        now_s += pace.delay_s(now_s)
        # What was answered before this call fits into the time since the first one, and one second more.
        assert answered <= 100 * (now_s - (starts[0] if starts else now_s) + 1) + 1e-6
        pace.note_call(now_s)
        pace.note_bytes(size_bytes, now_s)
        starts.append(now_s)
        answered += size_bytes
    for number, start in enumerate(starts[calls:]):
        assert start - starts[number] >= 1.0 - 1e-9


def test_after_an_answer_of_ten_mebibytes_a_shard_is_left_alone_for_five_seconds() -> None:
    pace = ReadPace(5, 2 * 2**20)
    pace.note_call(100.0)
    pace.note_bytes(10 * 2**20, 100.2)
    assert pace.delay_s(100.2) == pytest.approx(5.0)
    assert pace.delay_s(103.2) == pytest.approx(2.0)
    assert pace.delay_s(105.3) == 0.0


def test_small_answers_cost_no_waiting() -> None:
    pace = ReadPace(5, 2 * 2**20)
    for number in range(20):
        assert pace.delay_s(100 + number / 4) == 0.0
        pace.note_call(100 + number / 4)
        pace.note_bytes(2**19, 100 + number / 4)


def known_errors() -> list[type[asyncpg.PostgresError]]:
    found, waiting = [], [asyncpg.PostgresError]
    while waiting:
        error = waiting.pop()
        waiting += error.__subclasses__()
        found.append(error)
    return [error for error in found if getattr(error, "sqlstate", None)]


@pytest.mark.parametrize("error", known_errors(), ids=lambda error: error.__name__)
def test_every_error_the_driver_knows_is_of_a_mapped_class(error: type[asyncpg.PostgresError]) -> None:
    sqlstate = str(error.sqlstate)
    assert sqlstate[:2] in CLASSES or sqlstate in CODES
    assert isinstance(translate(error("x"), "try"), Transient | Rejected | Fatal)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (asyncpg.DeadlockDetectedError("x"), Transient, "could not write"),
        (asyncpg.SerializationError("x"), Transient, ""),
        (asyncpg.CannotConnectNowError("starting up"), Transient, "starting up"),
        (asyncpg.AdminShutdownError("x"), Transient, ""),
        (asyncpg.TooManyConnectionsError("x"), Transient, ""),
        (asyncpg.QueryCanceledError("statement time-out"), Transient, ""),
        (asyncpg.ReadOnlySQLTransactionError("failover"), Transient, ""),
        (asyncpg.InvalidCachedStatementError("x"), Transient, ""),
        (asyncpg.ConnectionDoesNotExistError("x"), Transient, ""),
        (asyncpg.InterfaceError("the connection is closed"), Transient, "closed"),
        (asyncpg.InternalClientError("another operation (2) is in progress"), Transient, ""),
        (ConnectionRefusedError("x"), Transient, ""),
        (TimeoutError(), Transient, "TimeoutError"),
        (asyncpg.NumericValueOutOfRangeError("x"), Rejected, "22003"),
        (asyncpg.CheckViolationError("x"), Rejected, "23514"),
        (asyncpg.ProgramLimitExceededError("x"), Rejected, "54000"),
        (asyncpg.CardinalityViolationError("x"), Fatal, "21000"),
        (asyncpg.UndefinedTableError("x"), Fatal, "run `tidegate migrate`"),
        (asyncpg.UndefinedColumnError("x"), Fatal, "run `tidegate migrate`"),
        (asyncpg.InvalidSchemaNameError("x"), Fatal, "run `tidegate migrate`"),
        (asyncpg.InsufficientPrivilegeError("x"), Fatal, "role"),
        (asyncpg.InvalidPasswordError("x"), Fatal, "TIDEGATE_DATABASE_URL"),
        (asyncpg.exceptions.ClientConfigurationError("x"), Fatal, "TIDEGATE_DATABASE_URL"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_we_meet_means_what_it_should(error: Exception, kind: type[Exception], words: str) -> None:
    translated = translate(error, "write")
    assert type(translated) is kind
    assert words in str(translated)
    with pytest.raises(kind), database_errors("write"):
        raise error


def test_reasons_are_stable_words() -> None:
    reasons = [translate(error("x"), "write") for error in (asyncpg.CheckViolationError, asyncpg.DataError)]
    assert [error.reason for error in reasons if isinstance(error, Rejected)] == ["check_violation", "unstorable"]


def test_an_unknown_code_is_loud() -> None:
    assert verdict_of("ZZ999") == "fatal"
