"""Dead letters that can be grouped, edited and replayed; the record of erasures."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from tidegate.letter import LetterKind, event_identity, fingerprint, place_identity, row_identity

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SCHEMA = "tidegate"
_ROWS = 500

_KIND = """
UPDATE tidegate.dead_letter SET kind = CASE
    WHEN source IS NULL AND stage = 'read' AND reason = 'gap' AND payload = '' THEN 'gap'
    WHEN observed_at IS NOT NULL OR stage NOT IN ('decode', 'write') THEN 'row' ELSE 'event' END
"""
_NEXT = """
SELECT id, kind, shard_id, sequence_number, sub_sequence, stage, reason, message, entity, key, source, event_id, payload
FROM tidegate.dead_letter WHERE id > :last ORDER BY id LIMIT :rows
"""
_NAME = "UPDATE tidegate.dead_letter SET identity = :identity, fingerprint = :fingerprint WHERE id = :id"
# What was filed once for each place is one letter from now on; the older ones are kept under a name of their own.
_TELL_APART = """
UPDATE tidegate.dead_letter AS letter SET identity = letter.identity || '-' || letter.id
WHERE EXISTS (SELECT FROM tidegate.dead_letter AS newer
              WHERE newer.stream = letter.stream AND newer.identity = letter.identity AND newer.id > letter.id)
"""


def _add(*columns: sa.Column[object]) -> None:
    for column in columns:
        op.add_column("dead_letter", column, schema=SCHEMA)


def _time(name: str, *, nullable: bool = True) -> sa.Column[object]:
    default = None if nullable else sa.func.now()
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable, server_default=default)


def _index(name: str, columns: list[str], where: str | None) -> None:
    condition = None if where is None else sa.text(where)
    op.create_index(f"dead_letter_{name}", "dead_letter", columns, schema=SCHEMA, postgresql_where=condition)


def upgrade() -> None:
    _add(
        sa.Column("kind", sa.Text(), nullable=True),
        sa.Column("identity", sa.Text(), nullable=True),
        sa.Column("fingerprint", sa.Text(), nullable=True),
        sa.Column("resolution", sa.Text(), nullable=True),
        sa.Column("resolved_by", sa.Text(), nullable=True),
        _time("replayed_at"),
        sa.Column("replays", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("edited_payload", sa.LargeBinary(), nullable=True),
        sa.Column("edited_identity", sa.Text(), nullable=True),
        _time("edited_at"),
        sa.Column("edited_by", sa.Text(), nullable=True),
    )
    op.execute(_KIND)
    _name_letters()
    op.execute(_TELL_APART)
    for name in ("kind", "identity", "fingerprint"):
        op.alter_column("dead_letter", name, nullable=False, schema=SCHEMA)
    op.drop_constraint("dead_letter_position_key", "dead_letter", schema=SCHEMA)
    op.create_unique_constraint("dead_letter_identity_key", "dead_letter", ["stream", "identity"], schema=SCHEMA)
    _index("fingerprint", ["fingerprint"], None)
    _index("edited", ["edited_identity"], "edited_identity IS NOT NULL")
    _index("replayed", ["entity", "key"], "replayed_at IS NOT NULL")
    _index("resolved", ["resolved_at"], "resolved_at IS NOT NULL")
    op.create_table(
        "erasure",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("entity", sa.Text(), nullable=False),
        sa.Column("key_hash", sa.LargeBinary(), nullable=False),
        _time("erased_at", nullable=False),
        sa.Column("erased_by", sa.Text(), nullable=False),
        sa.Column("version", sa.ARRAY(sa.BigInteger()), nullable=True),
        sa.Column("was_deleted", sa.Boolean(), nullable=False, server_default=sa.false()),
        _time("undone_at"),
        sa.Column("undone_by", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        schema=SCHEMA,
    )
    standing = sa.text("undone_at IS NULL")
    op.create_index(
        "erasure_key", "erasure", ["entity", "key_hash"], unique=True, schema=SCHEMA, postgresql_where=standing
    )


def _name_letters() -> None:
    connection = op.get_bind()
    last = 0
    while rows := connection.execute(sa.text(_NEXT), {"last": last, "rows": _ROWS}).all():
        named = [
            {
                "id": row.id,
                "identity": _identity(row),
                "fingerprint": fingerprint(row.stage, row.reason, row.entity, row.message),
            }
            for row in rows
        ]
        connection.execute(sa.text(_NAME), named)
        last = rows[-1].id


def _identity(row: sa.Row[tuple[object, ...]]) -> str:
    if row.kind == LetterKind.ROW:
        return row_identity(row.source, row.entity, row.key, row.event_id, row.payload)
    named = event_identity(row.payload) if row.kind == LetterKind.EVENT else None
    return named or place_identity(LetterKind(row.kind), row.shard_id, int(row.sequence_number), row.sub_sequence)


def downgrade() -> None:
    op.drop_table("erasure", schema=SCHEMA)
    op.drop_index("dead_letter_replayed", "dead_letter", schema=SCHEMA)
    names = (
        "kind", "identity", "fingerprint", "resolution", "resolved_by", "replayed_at", "replays", "edited_payload",
        "edited_identity", "edited_at", "edited_by",
    )  # fmt: skip
    # The constraint and the other indexes go with their columns.
    for name in names:
        op.drop_column("dead_letter", name, schema=SCHEMA)
    place = ["stream", "shard_id", "sequence_number", "sub_sequence"]
    # Letters that were met again at one place by several names cannot be told apart any more.
    op.execute(
        "DELETE FROM tidegate.dead_letter AS letter USING tidegate.dead_letter AS newer WHERE newer.id > letter.id AND "
        + " AND ".join(f"newer.{name} = letter.{name}" for name in place)
    )
    op.create_unique_constraint("dead_letter_position_key", "dead_letter", place, schema=SCHEMA)
