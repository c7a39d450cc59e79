"""The outbox' rules without a database: who is told, under which id, when again, and how it is signed."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.integration.outbox_receiver import NEXT_SECRET, SECRET
from tests.integration.worker_rows import Counter, Gadget, change, gadget
from tidegate import retry_after
from tidegate.bubble import Bubble, Env, Webhook, check
from tidegate.cli import main
from tidegate.errors import BubbleError, Fatal
from tidegate.event import Cause, EntityKey, Operation
from worker.backoff import Backoff, Restraint
from worker.routes import NO_ROUTES, Routes, effect_id, lane
from worker.webhook import WebhookDestination, sign

URL, KEY = Env("HOOK_URL"), Env("HOOK_SECRET", secret=True)
HOOK = Webhook(name="partner", url=URL, secrets=(KEY,))


def hook(**changed: Any) -> Webhook:
    return Webhook(**{"name": "partner", "url": URL, "secrets": (KEY,), **changed})


def test_a_destination_is_told_of_what_it_asked_for_and_by_default_of_live_changes_only() -> None:
    all_of_it = hook(name="all")
    deleted = hook(name="gone", entities=(Gadget,), operations=(Operation.DELETE,), causes=(Cause.LIVE, Cause.SWEEP))
    routes = Routes((all_of_it, deleted), ("gadget", "counter"))
    assert routes
    assert not NO_ROUTES
    upsert, delete = change("A", 1, gadget("A")), change("A", 2, None)
    assert routes.of(upsert) == ("all",)
    assert routes.of(delete) == ("all", "gone")
    assert routes.of(change("1", 1, None, entity="counter")) == ("all",)
    told = {cause: routes.of(change("A", 2, None, cause=cause)) for cause in Cause}
    assert told == {
        Cause.LIVE: ("all", "gone"), Cause.BACKFILL: (), Cause.SWEEP: ("gone",), Cause.RETRANSLATE: (),
    }  # fmt: skip


@given(st.text())
def test_what_identifies_a_change_fits_into_a_header(event_id: str) -> None:
    made = effect_id(event_id)
    assert 0 < len(made) <= 200
    assert made.isascii()
    assert made.isprintable()
    assert " " not in made
    assert effect_id(made) == made
    ordinary = change("A", 1, None).event_id
    assert effect_id(ordinary) == ordinary


@given(st.text(), st.text())
def test_a_lane_is_a_bigint_and_the_same_for_the_same_row(entity: str, key: str) -> None:
    assert -(2**63) <= lane(EntityKey(entity, key)) < 2**63
    assert lane(EntityKey(entity, key)) == lane(EntityKey(entity, key))


def test_lanes_tell_rows_apart() -> None:
    assert len({lane(EntityKey("gadget", str(number))) for number in range(10_000)}) == 10_000
    assert lane(EntityKey("gadget", "7")) == -7671574287239842706, "stored in databases: it may never change"


def test_waits_double_up_to_the_most_and_are_a_random_part_of_that() -> None:
    backoff = Backoff(base_s=1, most_s=10)
    assert [backoff.wait_s(failures, 1.0) for failures in (1, 2, 3, 4, 5, 10_000)] == [1, 2, 4, 8, 10, 10]
    assert backoff.wait_s(3, 0.25) == 1


def test_failures_in_a_row_pause_the_destination_and_then_one_change_tries_it() -> None:
    restraint = Restraint(Backoff(base_s=1, most_s=60), after=3)
    assert restraint.room(0, 8, under_way=2) == 6
    for _ in range(2):
        restraint.failed(0, 1.0, None)
        assert restraint.room(0, 8, 0) == 8
    restraint.failed(0, 1.0, None)
    assert [restraint.room(now, 8, 0) for now in (0, 0.9, 1.0)] == [0, 0, 1]
    assert restraint.room(1.0, 8, under_way=1) == 0, "the one that tries is under way"
    restraint.failed(1, 1.0, None)
    assert [restraint.room(now, 8, 0) for now in (2.9, 3.0)] == [0, 1]
    restraint.succeeded()
    assert restraint.room(3.0, 8, 0) == 8


def test_what_the_receiver_asks_for_holds_for_everything_that_goes_to_it() -> None:
    restraint = Restraint(Backoff(base_s=1, most_s=60), after=3)
    restraint.failed(0, 0.0, 30.0)
    restraint.succeeded()
    assert [restraint.room(now, 8, 0) for now in (29.9, 30.0)] == [0, 8]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("120", 120.0), (" 0 ", 0.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 60.0), ("Wed, 21 Oct 2026 07:00:00 GMT", 0.0),
        ("9" * 500, 999_999_999_999.0), (None, None), ("soon", None), ("-3", None), ("²", None), ("", None),
    ],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date(text: str | None, expected: float | None) -> None:
    assert retry_after.seconds(text, datetime(2026, 10, 21, 7, 27, tzinfo=UTC)) == expected


def test_the_signature_is_that_of_the_standard() -> None:
    """The example that the libraries of Standard Webhooks are tested with."""
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signature = sign(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"HOOK_SECRET": SECRET}, "HOOK_URL is missing"),
        ({"HOOK_URL": "ftp://host/x", "HOOK_SECRET": SECRET}, "HOOK_URL is no https"),
        ({"HOOK_URL": "https://[::1/x", "HOOK_SECRET": SECRET}, "HOOK_URL is no https"),
        ({"HOOK_URL": "https://host:99999/x", "HOOK_SECRET": SECRET}, "HOOK_URL is no https"),
        ({"HOOK_URL": "https://host/x"}, "HOOK_SECRET is missing"),
        ({"HOOK_URL": "https://host/x", "HOOK_SECRET": "whsec_c2hvcnQ="}, "openssl rand"),
        ({"HOOK_URL": "https://host/x", "HOOK_SECRET": "no base64 at all"}, "openssl rand"),
    ],
)
async def test_what_is_missing_or_unusable_is_said_at_the_start_without_the_secret(
    environ: dict[str, str], text: str
) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(Fatal, match=text) as caught:
            WebhookDestination(HOOK, session, environ)
    assert environ.get("HOOK_SECRET", "never") not in str(caught.value)


async def test_a_second_secret_may_be_left_out_and_one_must_be_set() -> None:
    second = Env("HOOK_NEXT", secret=True, default="")
    two = hook(secrets=(KEY, second))
    environ = {"HOOK_URL": "https://host/x", "HOOK_SECRET": SECRET}
    async with aiohttp.ClientSession() as session:
        WebhookDestination(two, session, environ)
        WebhookDestination(two, session, {**environ, "HOOK_NEXT": NEXT_SECRET})
        with pytest.raises(Fatal, match="none of its secrets is set"):
            WebhookDestination(hook(secrets=(second,)), session, environ)


@pytest.mark.parametrize(
    ("destinations", "text"),
    [
        ((hook(name="Partner!"),), "'Partner!': name it in lower-case"),
        ((HOOK, HOOK), "'partner': the name is taken twice"),
        ((hook(entities=(Counter,)),), "Counter is not among the bubble's entities"),
        ((hook(causes=()),), "would never be told of anything"),
        ((hook(secrets=()),), "what it sends is signed"),
        ((hook(secrets=(URL,)),), "what it sends is signed"),
        ((hook(timeout_s=0),), "timeout_s is 0"),
    ],
)
def test_a_wrong_declaration_is_refused_at_the_start(destinations: tuple[Webhook, ...], text: str) -> None:
    with pytest.raises(BubbleError, match=text):
        check(Bubble(name="b", entities=(Gadget,), sources=(), destinations=destinations))


def test_what_a_destination_needs_is_part_of_the_bubbles_environment() -> None:
    bubble = Bubble(name="b", entities=(Gadget,), sources=(), destinations=(HOOK, hook(name="other")))
    check(bubble)
    assert bubble.environment == (URL, KEY)


def test_check_says_who_is_told_of_what_and_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--bubble", "tests.integration.outbox_bubble"]) == 1
    shown = capsys.readouterr().out
    assert "destination partner: POST to PARTNER_URL, each upsert and delete of gadget, when live" in shown
    assert "environment PARTNER_SECRET: MISSING" in shown
