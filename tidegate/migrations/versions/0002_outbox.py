"""The outbox: applied changes on their way to the destinations of the bubble."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SCHEMA = "tidegate"


def _index(name: str, columns: list[str], where: str) -> None:
    """Each for one question; what is waiting is little beside what was sent and is kept for a while."""
    op.create_index(name, "outbox", columns, schema=SCHEMA, postgresql_where=sa.text(where))


def upgrade() -> None:
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("destination", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("lane", sa.BigInteger(), nullable=False),
        sa.Column("entity", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False, server_default="waiting"),
        sa.Column("attempts", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("queued_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("tried_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("answered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("destination", "event_id", name="outbox_event_key"),
        sa.CheckConstraint("state IN ('waiting', 'sent', 'dead', 'discarded')", name="outbox_state"),
        schema=SCHEMA,
    )
    _index("outbox_due", ["destination", "due_at"], "state = 'waiting'")
    _index("outbox_oldest", ["destination", "id"], "state = 'waiting'")
    _index("outbox_lane", ["destination", "lane", "id"], "state = 'waiting'")
    _index("outbox_dead", ["destination"], "state = 'dead'")
    _index("outbox_answered", ["answered_at"], "state IN ('sent', 'discarded')")


def downgrade() -> None:
    op.drop_table("outbox", schema=SCHEMA)
