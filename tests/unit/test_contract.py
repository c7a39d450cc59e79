"""The event contract accepts what the codec writes, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest
from jsonschema import Draft202012Validator

from tests.integration.library_bubble import Loan, bubble
from tidegate import codec
from tidegate.contract import event_contract
from tidegate.event import Cause, ChangeEvent, EntityKey, Operation, QuarantineRecord, StreamEvent, Version, Watermark

NOW = datetime(2026, 11, 21, 5, 55, 3, 120_000, tzinfo=UTC)
LOAN = Loan(
    number="L1", reader="1", guarantor=None, state="out", fee=Decimal("12.50"), rate=0.1, renewals=3, overdue=False,
    due=None, ticket=UUID(int=1), changed_at=NOW,
)  # fmt: skip
KEY = EntityKey("loan", "L1")
UPSERT = ChangeEvent(
    event_id="e1", key=KEY, version=Version(0, 1, 2, 3, 1), operation=Operation.UPSERT, cause=Cause.LIVE, source="loans",
    occurred_at=NOW, observed_at=NOW, payload=msgspec.json.decode(msgspec.json.encode(LOAN)),
)  # fmt: skip
DELETE = msgspec.structs.replace(UPSERT, operation=Operation.DELETE, payload=None)
QUARANTINED = QuarantineRecord(
    event_id="e2", source="loans", entity="loan", stage="translate", reason="invalid", message="no number", raw=b"\x00\xff",
    observed_at=NOW,
)  # fmt: skip
EVENTS: list[StreamEvent] = [UPSERT, DELETE, Watermark(event_id="e3", source="loans", as_of=NOW), QUARANTINED]

contract = Draft202012Validator(event_contract(bubble), format_checker=Draft202012Validator.FORMAT_CHECKER)


def written(event: StreamEvent) -> dict[str, Any]:
    attributes: dict[str, Any] = msgspec.json.decode(codec.encode(event))
    return attributes


def test_it_is_a_valid_schema() -> None:
    Draft202012Validator.check_schema(event_contract(bubble))
    assert len(event_contract(bubble)["oneOf"]) == 2 * len(bubble.entities) + 2


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_what_the_codec_writes_is_accepted(event: StreamEvent) -> None:
    contract.validate(written(event))
    contract.validate({**written(event), "traceparent": "an extension of somebody's"})


def test_events_of_an_older_or_newer_release_are_accepted() -> None:
    data = UPSERT.payload or {}
    contract.validate(written(UPSERT) | {"data": {**data, "extra": 1}})
    contract.validate(written(UPSERT) | {"data": {name: value for name, value in data.items() if name != "guarantor"}})


WRONG: list[dict[str, Any]] = [
    {"specversion": "0.3"},
    {"type": "tidegate.unknown.upsert"},
    {"tidegateversion": "1.2.3"},
    {"tidegatecause": "because"},
    {"data": None},
    {"data": {**(UPSERT.payload or {}), "fee": 12.5}},
    {"data": {"number": "L1"}},
    {"type": "tidegate.loan.delete"},
    {"type": "tidegate.branch.upsert"},
]


@pytest.mark.parametrize("change", WRONG, ids=str)
def test_anything_else_is_refused(change: dict[str, Any]) -> None:
    assert not contract.is_valid(written(UPSERT) | change)


def test_nothing_of_the_envelope_may_be_left_out() -> None:
    for name in written(UPSERT):
        assert not contract.is_valid({key: value for key, value in written(UPSERT).items() if key != name}), name
