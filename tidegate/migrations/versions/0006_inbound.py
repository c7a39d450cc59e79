"""Inbound: events that came in at the edge, and which streams bring them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

SCHEMA = "tidegate"


def upgrade() -> None:
    op.create_table(
        "inbound",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("identity", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("viewers", postgresql.JSONB(), nullable=False),
        sa.Column("occurred_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("filed_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("data", postgresql.JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("identity", name="inbound_identity_key"),
        schema=SCHEMA,
    )
    op.create_index("inbound_type", "inbound", ["event_type", "id"], schema=SCHEMA)
    op.create_index("inbound_subject", "inbound", ["subject"], schema=SCHEMA)
    op.create_table(
        "inbound_stream",
        sa.Column("stream", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("stream"),
        schema=SCHEMA,
    )


def downgrade() -> None:
    op.drop_table("inbound_stream", schema=SCHEMA)
    op.drop_table("inbound", schema=SCHEMA)
