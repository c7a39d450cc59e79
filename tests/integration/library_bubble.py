"""A bubble with every field type, every key type and every kind of reader, for the tests of the API."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Literal
from uuid import UUID

from tidegate.bubble import Bubble, Env, PageNumber, Rest, Source, Viewer
from tidegate.entity import EVERYONE, Entity, Meta, Reader


class Loan(Entity):
    """A book that a reader has."""

    meta = Meta(
        collection="loans",
        key="number",
        version="changed_at",
        readers=(Reader("reader", ("reader", "guarantor")), Reader("staff")),
    )
    number: str
    reader: str
    guarantor: str | None
    state: Literal["out", "back"]
    fee: Decimal
    rate: float
    renewals: int
    overdue: bool
    due: date | None
    ticket: UUID
    changed_at: datetime


class Branch(Entity):
    """A library in town."""

    meta = Meta(collection="town-branches", key="number", readers=(Reader(EVERYONE),))
    number: int
    name: str


class Shelf(Entity):
    """Where books stand."""

    meta = Meta(collection="shelves", key="id", readers=(Reader(EVERYONE),))
    id: UUID
    label: str


def _source(name: str, entity: type[Entity], *, watermark: bool = True) -> Source:
    feed = Rest(
        url=Env("LIBRARY_URL"), path="/", rows="rows", key="key", paging=PageNumber(param="page", pages="pages")
    )
    return Source(name=name, entity=entity, feed=feed, translate=entity, watermark=watermark)


bubble = Bubble(
    name="library",
    entities=(Loan, Branch, Shelf),
    sources=(_source("loans", Loan), _source("branches", Branch, watermark=False)),
    viewers=(
        Viewer("reader", claim="username", prefix="reader-"),
        Viewer("reader", claim="scope", prefix="tidegate/reader-", many=True),
        Viewer("staff", claim="cognito:groups", prefix="staff-", many=True),
    ),
)
