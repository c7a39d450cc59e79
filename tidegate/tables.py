"""SQLAlchemy Core tables: one for each entity, derived from its class, and the operational ones.

The worker writes them, alembic migrates them, the operator reads them. The API does not import this module
(cold start); it makes its SELECTs from the same `EntityShape`.

Columns that are tidegate's own start with an underscore, which no entity field can. Content columns are nullable
because a tombstone may arrive before any content; a CHECK holds live rows to the entity's own rules. It is no part of
a bubble's migrations: alembic does not see its text change, so `tidegate.migrate` sets it anew at every upgrade.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Set
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeEngine

from tidegate.columns import COMPLETENESS
from tidegate.entity import EntityShape, Field, Kind

SCHEMA = "tidegate"
"""The database schema of the operational tables and functions. Entity tables are in the default schema."""

VERSION_COLUMNS = ("_generation", "_source_version", "_epoch", "_read", "_translation")
"""The parts of `tidegate.event.Version`, in its order."""


TOMBSTONE_INDEX = "_gone"
"""What the name of an index that is not the bubble's ends in."""


def column_type(field: Field) -> TypeEngine[Any]:
    types: dict[Kind, TypeEngine[Any]] = {
        Kind.TEXT: sa.Text(),
        Kind.INTEGER: sa.BigInteger(),
        Kind.FLOAT: sa.Double(),
        Kind.BOOLEAN: sa.Boolean(),
        Kind.DECIMAL: sa.Numeric(),
        Kind.DATE: sa.Date(),
        Kind.TIMESTAMP: sa.DateTime(timezone=True),
        Kind.UUID: sa.Uuid(),
    }
    return types[field.kind]


def entity_table(shape: EntityShape, metadata: sa.MetaData) -> sa.Table:
    """The typed table of one entity: its fields, its version, and what became of it."""
    content: list[sa.Column[Any]] = [
        # Keys come from the back office; without False an integer key would become a serial.
        sa.Column(field.name, column_type(field), primary_key=True, autoincrement=False)
        if field == shape.key
        else sa.Column(field.name, column_type(field))
        for field in shape.fields
    ]
    own: list[sa.Column[Any]] = [
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in VERSION_COLUMNS),
        sa.Column("_deleted", sa.Boolean(), nullable=False),
        sa.Column("_event_id", sa.Text(), nullable=False),
        sa.Column("_occurred_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("_projected_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    ]
    return sa.Table(shape.table, metadata, *content, *own, *_reader_indexes(shape))


def fingerprint(shapes: Iterable[EntityShape]) -> str:
    """A short name of the schema that a release was written for: its entities' tables and tidegate's own.

    Workers bear it in their sessions' name, so that a migration can tell those of the previous release from its own.
    """
    whole = [table for metadata in (entity_metadata(shapes), operational) for table in metadata.sorted_tables]
    parts = sorted(
        f"{table.key} {[(column.name, str(column.type)) for column in table.columns]} "
        f"{sorted(str(getattr(each, 'name', '')) for each in (*table.constraints, *table.indexes))}"
        for table in whole
    )
    parts += sorted(f"{shape.table} {sorted(required(shape))}" for shape in shapes)
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=4).hexdigest()


def required(shape: EntityShape) -> frozenset[str]:
    """The fields without which no row of the entity is live. The key is never left out."""
    return frozenset(field.name for field in shape.fields if not field.nullable and field != shape.key)


def completeness(shape: EntityShape, fields: Set[str] | None = None) -> Iterator[str]:
    """The SQL that holds live rows to the fields that the entity requires now, or to those of them that are given.

    NOT VALID: it judges what is written from now on. Rows from before a field was added stay until the poller's
    next translation of them; to check them here would let no such release start.
    """
    names = sorted(required(shape) if fields is None else fields)
    if names:
        complete = " AND ".join(f'"{name}" IS NOT NULL' for name in names)
        rule = f'"{shape.table}{COMPLETENESS}"'
        yield f'ALTER TABLE "{shape.table}" ADD CONSTRAINT {rule} CHECK ("_deleted" OR ({complete})) NOT VALID'


def no_completeness(shape: EntityShape) -> str:
    """Takes that rule away, to make room for another one."""
    return f'ALTER TABLE IF EXISTS "{shape.table}" DROP CONSTRAINT IF EXISTS "{shape.table}{COMPLETENESS}"'


def tombstone_index(shape: EntityShape) -> str:
    """How housekeeping finds tombstones without reading the table.

    On the key, and with a condition that only deletions change: an index on a time would be written at every update.
    No part of a bubble's migrations either; nobody should have to generate one for it.
    """
    name = f'"{shape.table}{TOMBSTONE_INDEX}"'
    return f'CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} ON "{shape.table}" ("{shape.key.name}") WHERE "_deleted"'


def _reader_indexes(shape: EntityShape) -> Iterable[sa.Index]:
    """Row-level security looks rows up by these fields on every read; others are declared."""
    fields = sorted({*shape.indexes, *(name for reader in shape.readers for name in reader.fields)} - {shape.key.name})
    return [sa.Index(f"{shape.table}_{name}_key", name, shape.key.name) for name in fields]


def entity_metadata(shapes: Iterable[EntityShape]) -> sa.MetaData:
    metadata = sa.MetaData()
    for shape in shapes:
        entity_table(shape, metadata)
    return metadata


operational = sa.MetaData(schema=SCHEMA)

shard = sa.Table(
    "shard",
    operational,
    sa.Column("stream", sa.Text(), primary_key=True),
    sa.Column("shard_id", sa.Text(), primary_key=True),
    # Sequence numbers have 56 digits; NUMERIC compares them, NULL is "nothing read yet".
    sa.Column("sequence_number", sa.Numeric(), nullable=True),
    sa.Column("sub_sequence", sa.BigInteger(), nullable=False, server_default="0"),
    sa.Column("lease_counter", sa.BigInteger(), nullable=False, server_default="0"),
    sa.Column("committed_at", sa.DateTime(timezone=True), nullable=True),
    comment="Shards that are read or wait to be: the position committed with the rows, and the lease counter as fence.",
)

watermark = sa.Table(
    "watermark",
    operational,
    sa.Column("stream", sa.Text(), primary_key=True),
    sa.Column("shard_id", sa.Text(), primary_key=True),
    sa.Column("source", sa.Text(), primary_key=True),
    sa.Column("as_of", sa.DateTime(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(
        ["stream", "shard_id"], [f"{SCHEMA}.shard.stream", f"{SCHEMA}.shard.shard_id"], ondelete="CASCADE"
    ),
    comment="Everything of the source that changed before as_of and belongs to this shard is projected.",
)

dead_letter = sa.Table(
    "dead_letter",
    operational,
    sa.Column("id", sa.BigInteger(), sa.Identity(), primary_key=True),
    sa.Column("stream", sa.Text(), nullable=False),
    # Where it was met last: a replay stands further on.
    sa.Column("shard_id", sa.Text(), nullable=False),
    sa.Column("sequence_number", sa.Numeric(), nullable=False),
    sa.Column("sub_sequence", sa.BigInteger(), nullable=False),
    sa.Column("stage", sa.Text(), nullable=False),
    sa.Column("reason", sa.Text(), nullable=False),
    sa.Column("message", sa.Text(), nullable=False),
    sa.Column("entity", sa.Text(), nullable=True),
    sa.Column("key", sa.Text(), nullable=True),
    sa.Column("source", sa.Text(), nullable=True),
    sa.Column("event_id", sa.Text(), nullable=True),
    # Bytes, because text and jsonb refuse NUL.
    sa.Column("payload", sa.LargeBinary(), nullable=False),
    sa.Column("attempts", sa.BigInteger(), nullable=False, server_default="1"),
    sa.Column("first_seen_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    # Arrays compare element by element, as versions do.
    sa.Column("version", sa.ARRAY(sa.BigInteger()), nullable=True),
    sa.Column("observed_at", sa.DateTime(timezone=True), nullable=True),
    # `tidegate.letter` says what these three mean.
    sa.Column("kind", sa.Text(), nullable=False),
    sa.Column("identity", sa.Text(), nullable=False),
    sa.Column("fingerprint", sa.Text(), nullable=False),
    # Open while NULL. Set by the worker when this or a newer version of the row is there, or by a person.
    sa.Column("resolved_at", sa.DateTime(timezone=True), nullable=True),
    sa.Column("resolution", sa.Text(), nullable=True),
    sa.Column("resolved_by", sa.Text(), nullable=True),
    sa.Column("replayed_at", sa.DateTime(timezone=True), nullable=True),
    sa.Column("replays", sa.BigInteger(), nullable=False, server_default="0"),
    # What a person made of the payload, whole record again; the payload itself stays as it came.
    sa.Column("edited_payload", sa.LargeBinary(), nullable=True),
    sa.Column("edited_identity", sa.Text(), nullable=True),
    sa.Column("edited_at", sa.DateTime(timezone=True), nullable=True),
    sa.Column("edited_by", sa.Text(), nullable=True),
    # Strict order: nothing is known to be wrong with it, it waits since then for the older letters of its key.
    sa.Column("parked_at", sa.DateTime(timezone=True), nullable=True),
    sa.UniqueConstraint("stream", "identity", name="dead_letter_identity_key"),
    # The version, to find the oldest letter of a key behind which thousands may wait.
    sa.Index(
        "dead_letter_open_version",
        "entity",
        "key",
        "version",
        postgresql_where=sa.text("resolved_at IS NULL AND key IS NOT NULL"),
    ),
    sa.Index(
        "dead_letter_parked",
        "entity",
        "key",
        postgresql_where=sa.text("resolved_at IS NULL AND parked_at IS NOT NULL"),
    ),
    sa.Index("dead_letter_open_source", "source", "reason", postgresql_where=sa.text("resolved_at IS NULL")),
    sa.Index("dead_letter_fingerprint", "fingerprint"),
    sa.Index("dead_letter_edited", "edited_identity", postgresql_where=sa.text("edited_identity IS NOT NULL")),
    sa.Index("dead_letter_replayed", "entity", "key", postgresql_where=sa.text("replayed_at IS NOT NULL")),
    sa.Index("dead_letter_resolved", "resolved_at", postgresql_where=sa.text("resolved_at IS NOT NULL")),
    comment="Records that could not be handled, whole, with the reason. Open ones make answers incomplete.",
)

erasure = sa.Table(
    "erasure",
    operational,
    sa.Column("id", sa.BigInteger(), sa.Identity(), primary_key=True),
    sa.Column("entity", sa.Text(), nullable=False),
    sa.Column("key_hash", sa.LargeBinary(), nullable=False),
    sa.Column("erased_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.Column("erased_by", sa.Text(), nullable=False),
    # What the row's version was, for --undo; NULL where there was no row.
    sa.Column("version", sa.ARRAY(sa.BigInteger()), nullable=True),
    sa.Column("was_deleted", sa.Boolean(), nullable=False, server_default=sa.false()),
    sa.Column("undone_at", sa.DateTime(timezone=True), nullable=True),
    sa.Column("undone_by", sa.Text(), nullable=True),
    sa.Index("erasure_key", "entity", "key_hash", unique=True, postgresql_where=sa.text("undone_at IS NULL")),
    comment="Rows whose content was erased and stays out; the key only as SHA-256 of its text.",
)

outbox = sa.Table(
    "outbox",
    operational,
    sa.Column("id", sa.BigInteger(), sa.Identity(), primary_key=True),
    sa.Column("destination", sa.Text(), nullable=False),
    # What the receiver sees as `webhook-id`: the event's own id, or a hash of one that fits no header.
    sa.Column("event_id", sa.Text(), nullable=False),
    # A hash of entity and key: within it, the order of the ids is the order of the versions and of sending.
    sa.Column("lane", sa.BigInteger(), nullable=False),
    sa.Column("entity", sa.Text(), nullable=False),
    sa.Column("key", sa.Text(), nullable=False),
    sa.Column("payload", sa.LargeBinary(), nullable=False),
    # discarded: a person gave a dead one up.
    sa.Column("state", sa.Text(), nullable=False, server_default="waiting"),
    # Counts claims; an outcome is only accepted from the latest one.
    sa.Column("attempts", sa.BigInteger(), nullable=False, server_default="0"),
    # While somebody sends it, the end of that claim; else when it may be tried, if it is the oldest of its lane.
    sa.Column("due_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.Column("queued_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.Column("tried_since", sa.DateTime(timezone=True), nullable=True),
    sa.Column("answered_at", sa.DateTime(timezone=True), nullable=True),
    sa.Column("reason", sa.Text(), nullable=True),
    sa.Column("message", sa.Text(), nullable=True),
    sa.UniqueConstraint("destination", "event_id", name="outbox_event_key"),
    sa.CheckConstraint("state IN ('waiting', 'sent', 'dead', 'discarded')", name="outbox_state"),
    sa.Index("outbox_due", "destination", "due_at", postgresql_where=sa.text("state = 'waiting'")),
    sa.Index("outbox_oldest", "destination", "id", postgresql_where=sa.text("state = 'waiting'")),
    sa.Index("outbox_lane", "destination", "lane", "id", postgresql_where=sa.text("state = 'waiting'")),
    sa.Index("outbox_dead", "destination", postgresql_where=sa.text("state = 'dead'")),
    sa.Index("outbox_answered", "answered_at", postgresql_where=sa.text("state IN ('sent', 'discarded')")),
    comment="Applied changes on their way to the destinations of the bubble, written with the rows that they changed.",
)

departure = sa.Table(
    "departure",
    operational,
    sa.Column("id", sa.BigInteger(), sa.Identity(), primary_key=True),
    sa.Column("relation", sa.Text(), nullable=False),
    sa.Column("key", sa.Text(), nullable=False),
    # The transaction in which the row left.
    sa.Column("xid", sa.BigInteger(), nullable=False),
    # Kind of viewer → the ids that could see the row, or true for all of the kind.
    sa.Column("seen_by", JSONB(), nullable=False),
    sa.Column("left_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.Index("departure_place", "relation", "xid", "key"),
    sa.Index("departure_age", "left_at"),
    comment="Rows that were deleted or left somebody's view, for those who had seen them. Kept for some days.",
)

inbound = sa.Table(
    "inbound",
    operational,
    sa.Column("id", sa.BigInteger(), sa.Identity(), primary_key=True),
    # A hash of source, subject and event id: the same event twice is once.
    sa.Column("identity", sa.Text(), nullable=False),
    sa.Column("event_id", sa.Text(), nullable=False),
    sa.Column("event_type", sa.Text(), nullable=False),
    sa.Column("source", sa.Text(), nullable=False),
    sa.Column("subject", sa.Text(), nullable=False),
    # Kind of viewer → ids, as the sender's token named them.
    sa.Column("viewers", JSONB(), nullable=False),
    sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("filed_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
    sa.Column("data", JSONB(), nullable=False),
    sa.UniqueConstraint("identity", name="inbound_identity_key"),
    sa.Index("inbound_type", "event_type", "id"),
    sa.Index("inbound_subject", "subject"),
    comment="Events that came in at the edge, each once. Whoever handles them deletes them.",
)

inbound_stream = sa.Table(
    "inbound_stream",
    operational,
    sa.Column("stream", sa.Text(), primary_key=True),
    comment="Streams of arrivals: their shards say nothing of how fresh the back offices' rows are.",
)
