"""Departures: rows that left somebody's view, so that a page that shows them can be told."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

SCHEMA = "tidegate"


def upgrade() -> None:
    op.create_table(
        "departure",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("relation", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("xid", sa.BigInteger(), nullable=False),
        sa.Column("seen_by", postgresql.JSONB(), nullable=False),
        sa.Column("left_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.PrimaryKeyConstraint("id"),
        schema=SCHEMA,
    )
    op.create_index("departure_place", "departure", ["relation", "xid", "key"], schema=SCHEMA)
    op.create_index("departure_age", "departure", ["left_at"], schema=SCHEMA)


def downgrade() -> None:
    # What refers to it is derived, and set anew by the release that wants it.
    op.execute("DROP FUNCTION IF EXISTS tidegate.track() CASCADE")
    op.drop_table("departure", schema=SCHEMA)
