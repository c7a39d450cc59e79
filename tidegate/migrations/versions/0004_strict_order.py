"""Strict order per key: letters that wait, and the oldest letter of a key found at once."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

SCHEMA = "tidegate"
_OPEN = "resolved_at IS NULL AND key IS NOT NULL"


def _index(name: str, columns: list[str], where: str) -> None:
    op.create_index(name, "dead_letter", columns, schema=SCHEMA, postgresql_where=sa.text(where))


def upgrade() -> None:
    op.add_column("dead_letter", sa.Column("parked_at", sa.DateTime(timezone=True), nullable=True), schema=SCHEMA)
    _index("dead_letter_parked", ["entity", "key"], "resolved_at IS NULL AND parked_at IS NOT NULL")
    _index("dead_letter_open_version", ["entity", "key", "version"], _OPEN)
    op.drop_index("dead_letter_open_key", "dead_letter", schema=SCHEMA)


def downgrade() -> None:
    _index("dead_letter_open_key", ["entity", "key"], _OPEN)
    op.drop_index("dead_letter_open_version", "dead_letter", schema=SCHEMA)
    op.drop_index("dead_letter_parked", "dead_letter", schema=SCHEMA)
    op.drop_column("dead_letter", "parked_at", schema=SCHEMA)
