"""The operational tables: shards, watermarks, dead letters."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SCHEMA = "tidegate"


def _time(name: str, *, nullable: bool = False, now: bool = False) -> sa.Column[object]:
    default = sa.func.now() if now else None
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, server_default=default)


def _open_letters(name: str, columns: list[str], where: str) -> None:
    """Most letters are resolved; what is asked all the time concerns the few that are open."""
    op.create_index(name, "dead_letter", columns, schema=SCHEMA, postgresql_where=sa.text(where))


def upgrade() -> None:
    op.create_table(
        "shard",
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("shard_id", sa.Text(), nullable=False),
        sa.Column("sequence_number", sa.Numeric(), nullable=True),
        sa.Column("sub_sequence", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("lease_counter", sa.BigInteger(), nullable=False, server_default="0"),
        _time("committed_at", nullable=True),
        sa.PrimaryKeyConstraint("stream", "shard_id"),
        schema=SCHEMA,
    )
    op.create_table(
        "watermark",
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("shard_id", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        _time("as_of"),
        sa.PrimaryKeyConstraint("stream", "shard_id", "source"),
        sa.ForeignKeyConstraint(
            ["stream", "shard_id"], [f"{SCHEMA}.shard.stream", f"{SCHEMA}.shard.shard_id"], ondelete="CASCADE"
        ),
        schema=SCHEMA,
    )
    op.create_table(
        "dead_letter",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("stream", sa.Text(), nullable=False),
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
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False, server_default="1"),
        _time("first_seen_at", now=True),
        _time("last_seen_at", now=True),
        sa.Column("version", sa.ARRAY(sa.BigInteger()), nullable=True),
        _time("observed_at", nullable=True),
        _time("resolved_at", nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("stream", "shard_id", "sequence_number", "sub_sequence", name="dead_letter_position_key"),
        schema=SCHEMA,
    )
    _open_letters("dead_letter_open_key", ["entity", "key"], "resolved_at IS NULL AND key IS NOT NULL")
    _open_letters("dead_letter_open_source", ["source", "reason"], "resolved_at IS NULL")


def downgrade() -> None:
    for table in ("dead_letter", "watermark", "shard"):
        op.drop_table(table, schema=SCHEMA)
