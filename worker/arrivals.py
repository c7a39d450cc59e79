"""A record of the stream of arrivals → an event that is filed, or a dead letter; and the SQL of filing.  (pure)

The API has judged each event before; it is judged again, for a release may have gone back, and others may write to
the stream. What does not fit becomes a dead letter and can be replayed when its type is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tidegate import inbound
from tidegate.edge import Inbound
from tidegate.errors import Rejected
from worker.batch import Arrived, DeadLetter, Item, Record

FILE_ARRIVALS = """
INSERT INTO tidegate.inbound (identity, event_id, event_type, source, subject, viewers, occurred_at, received_at, data)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::jsonb[], $7::timestamptz[],
                     $8::timestamptz[], $9::jsonb[])
ON CONFLICT (identity) DO NOTHING
RETURNING identity
"""
"""Answers the identities that were new. Twice in one statement is once, for DO NOTHING sees its own rows."""

CONFLICTS = """
SELECT given.identity FROM unnest($1::text[], $2::text[], $3::jsonb[]) AS given (identity, event_type, data)
JOIN tidegate.inbound AS stored ON stored.identity = given.identity
WHERE (stored.event_type, stored.data) IS DISTINCT FROM (given.event_type, given.data)
"""
"""Of events whose identity was there already, those that say something else: one id for two things."""

NAME_STREAM = "INSERT INTO tidegate.inbound_stream (stream) VALUES ($1) ON CONFLICT DO NOTHING"


class ArrivalDecoder:
    """Knows the bubble's inbound events."""

    def __init__(self, declared: Iterable[Inbound]) -> None:
        self._desk = inbound.Desk(declared)

    def decode_all(self, records: Sequence[Record]) -> list[Item]:
        """One item for each record. Never raises for what a record may hold."""
        return [self.decode(record) for record in records]

    def decode(self, record: Record) -> Item:
        try:
            return Arrived(record, self._desk.read(record.data))
        except Rejected as error:
            return _letter(record, error, "decode")


def refused(arrived: Arrived, error: Rejected) -> DeadLetter:
    """The dead letter of an event that only the database could judge."""
    event = arrived.event
    return _letter(arrived.record, error, "write", event.source, event.id)


def conflicting(arrived: Arrived) -> DeadLetter:
    """The dead letter of an event whose id its sender had used for another one."""
    text = f"the id {arrived.event.id!r} was used before by the same sender for an event that says something else"
    return refused(arrived, Rejected("conflict", text))


def rows(arrivals: Sequence[Arrived]) -> list[list[Any]]:
    """The arguments of FILE_ARRIVALS."""
    events = [arrived.event for arrived in arrivals]
    return [
        [event.identity for event in events],
        [event.id for event in events],
        [event.event_type for event in events],
        [event.source for event in events],
        [event.subject for event in events],
        [event.viewers for event in events],
        [event.time for event in events],
        [event.received for event in events],
        [bytes(event.data).decode() for event in events],
    ]


def contents(arrivals: Sequence[Arrived]) -> list[list[Any]]:
    """The arguments of CONFLICTS."""
    events = [arrived.event for arrived in arrivals]
    return [
        [event.identity for event in events],
        [event.event_type for event in events],
        [bytes(event.data).decode() for event in events],
    ]


def _letter(
    record: Record, error: Rejected, stage: str, source: str | None = None, event_id: str | None = None
) -> DeadLetter:
    return DeadLetter(
        position=record.position,
        stage=stage,
        reason=error.reason,
        message=str(error),
        payload=record.data,
        source=source,
        event_id=event_id,
    )
