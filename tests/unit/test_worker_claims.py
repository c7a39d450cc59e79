"""References to records kept in S3: what they stand for takes their place, and what cannot be had is filed."""

from __future__ import annotations

import dataclasses
from io import BytesIO
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.fakes.shard_life import ScriptedReader, until, working, world
from tidegate import claim
from tidegate.errors import Fatal, Transient
from tidegate.record import Record, Records
from worker.claims import S3Claims
from worker.ports import Delivery

LARGE = b"not an event, but large"


class Bucket:
    """Objects by name; `codes` are answered first, one a call."""

    def __init__(self, *codes: str) -> None:
        self.codes = list(codes)
        self.objects = {claim.name_of(LARGE): LARGE}

    async def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803
        code = self.codes.pop(0) if self.codes else "" if Key in self.objects else "NoSuchKey"
        if code:
            raise ClientError({"Error": {"Code": code, "Message": "because"}}, "GetObject")
        return {"Body": _Body(self.objects[Key])}


class _Body(BytesIO):
    async def read(self) -> bytes:  # type: ignore[override]
        return super().read()


def claims(bucket: Bucket) -> S3Claims:
    return S3Claims(bucket, "claims")


async def test_a_reference_becomes_what_it_stands_for() -> None:
    assert await claims(Bucket()).fetch(claim.encode("a:1", LARGE)) == LARGE


async def test_what_is_gone_or_was_changed_stays_a_reference() -> None:
    gone = claim.encode("a:1", b"never put")
    assert await claims(Bucket()).fetch(gone) == gone
    changed = Bucket()
    changed.objects[claim.name_of(LARGE)] = b"something else"
    assert await claims(changed).fetch(claim.encode("a:1", LARGE)) == claim.encode("a:1", LARGE)


async def test_failures_are_ours() -> None:
    with pytest.raises(Transient):
        await claims(Bucket("SlowDown")).fetch(claim.encode("a:1", LARGE))
    with pytest.raises(Fatal):
        await claims(Bucket("AccessDenied")).fetch(claim.encode("a:1", LARGE))


async def test_in_a_shards_life_order_is_kept_and_failures_are_waited_for() -> None:
    given = [b"1", claim.encode("a:1", LARGE), b"3", claim.encode("a:1", b"never put"), claim.encode("a:1", LARGE)]
    records = Records([Record(str(at), data) for at, data in enumerate(given, start=1)])
    made = await world(ScriptedReader(Delivery(records=records, millis_behind=0, size_bytes=9)))
    made.consumer = dataclasses.replace(made.consumer, claims=claims(Bucket("SlowDown", "InternalError")))
    async with working(made):
        await until(lambda: len(made.sink.positions) == len(given))
    letters = [letter for batch in made.sink.batches for letter in batch.dead]
    assert made.sink.positions == [1, 2, 3, 4, 5]
    assert [letter.payload for letter in letters] == [b"1", LARGE, b"3", given[3], LARGE]
    assert letters[3].reason == "claim_unresolved"
