"""Dropped files: races with whoever drops them are ordinary, and a bucket that refuses is one source's failure."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

import pytest
from botocore.exceptions import ClientError

from poller.csv_drop import CsvDropSource
from poller.source import FullWalk, Refused
from tests.fakes.poller_world import THINGS
from tidegate.bubble import CsvDrop, Env
from tidegate.errors import Transient

FEED = CsvDrop(bucket=Env("DROPS"), prefix="drops/", key="key")
AT = datetime(2026, 11, 21, 5, 55, tzinfo=UTC)


class Bucket:
    """One file; `code` is what reading it answers, `listing` what listing answers."""

    def __init__(self, *, code: str = "", listing: str = "") -> None:
        self.code = code
        self.listing = listing

    def get_paginator(self, _: str) -> Bucket:
        return self

    async def paginate(self, **_: Any) -> AsyncIterator[dict[str, Any]]:
        _refuse(self.listing)
        yield {"Contents": [{"Key": "drops/1.csv", "ETag": "e", "Size": 9, "LastModified": AT}]}

    async def get_object(self, **_: Any) -> dict[str, Any]:
        _refuse(self.code)
        return {"Body": _Body()}


class _Body:
    async def read(self) -> bytes:
        return BytesIO(b"key,content\na,1\n").read()


def _refuse(code: str) -> None:
    if code:
        raise ClientError({"Error": {"Code": code, "Message": "because"}}, "SomeCall")


def source(bucket: Bucket) -> CsvDropSource:
    return CsvDropSource(THINGS, FEED, bucket, {"DROPS": "drops"})


async def test_the_newest_file_is_read() -> None:
    page = await source(Bucket()).fetch(FullWalk())
    assert page.rows == ({"key": "a", "content": "1"},)


@pytest.mark.parametrize("code", ["PreconditionFailed", "NoSuchKey"])
async def test_a_file_replaced_or_deleted_between_listing_and_reading_is_tried_again(code: str) -> None:
    with pytest.raises(Transient, match="meanwhile") as caught:
        await source(Bucket(code=code)).fetch(FullWalk())
    assert not isinstance(caught.value, Refused)


@pytest.mark.parametrize("bucket", [Bucket(listing="NoSuchBucket"), Bucket(code="AccessDenied")])
async def test_a_bucket_that_refuses_ends_nothing(bucket: Bucket) -> None:
    with pytest.raises(Refused):
        await source(bucket).fetch(FullWalk())
