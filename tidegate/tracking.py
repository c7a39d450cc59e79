"""Which rows changed, and whose view a row left: the SQL that keeps a record of both, derived from the entities.  (pure)

`GET /v1/{collection}/changes` reads what is kept here. `tidegate.migrate` sets it anew at every upgrade; it is no
part of a bubble's migrations.

*Changes.* Every entity table has a column `_changed`: the transaction that last changed what the row shows. A page that
has seen everything below the oldest running transaction goes on from there, so nothing is skipped, in whatever order
transactions commit. The worker writes the column itself; a trigger does for whoever does not (the worker of an earlier
release, a person). Its index is a BRIN, which PostgreSQL 16 and newer keep without giving up HOT updates.

*Departures.* A row that is deleted, or whose readers change, leaves somebody's view, and its policies no longer tell whose.
So the trigger notes key and former readers in `tidegate.departure`, under row-level security of its own: who had been
able to see the row may read that it is gone, and nobody else. Housekeeping forgets departures after some days.

Transaction ids are 64 bits wide and PostgreSQL's own: there is no sequence to draw from, nothing to wait for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from tidegate.access import OPERATOR, READER, WORKER, quoted
from tidegate.entity import EntityShape

CHANGED: Final = "_changed"
"""The column's name, and what the names of its index and trigger end in."""

THIS: Final = "pg_current_xact_id()::text::bigint"
"""The transaction that we are in."""

TRACK: Final = """
CREATE OR REPLACE FUNCTION tidegate.track() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog AS $track$
DECLARE
    this bigint := pg_current_xact_id()::text::bigint;
    was jsonb := to_jsonb(OLD);
BEGIN
    NEW._changed := this;
    IF NOT OLD._deleted AND (NEW._deleted OR EXISTS (
        SELECT FROM jsonb_each(TG_ARGV[1]::jsonb) AS reader (kind, fields), jsonb_array_elements_text(fields) AS name
        WHERE was -> name IS DISTINCT FROM to_jsonb(NEW) -> name))
    THEN
        INSERT INTO tidegate.departure (relation, key, xid, seen_by)
        SELECT TG_TABLE_NAME, was ->> TG_ARGV[0], this, coalesce(jsonb_object_agg(kind, CASE fields
            WHEN '[]' THEN 'true'::jsonb
            ELSE (SELECT coalesce(jsonb_agg(DISTINCT was ->> name) FILTER (WHERE was ->> name IS NOT NULL), '[]')
                  FROM jsonb_array_elements_text(fields) AS name) END), '{}')
        FROM jsonb_each(TG_ARGV[1]::jsonb) AS reader (kind, fields);
    END IF;
    RETURN NEW;
END
$track$
"""
"""TG_ARGV: the key's column, and reader kind → fields as JSON; no fields means that every viewer of the kind sees all rows."""

HAD_SEEN: Final = """
CREATE OR REPLACE FUNCTION tidegate.had_seen(seen_by jsonb) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog AS $$
  SELECT EXISTS (
    SELECT FROM jsonb_each(nullif(current_setting('tidegate.viewers', true), '')::jsonb) AS mine (kind, ids)
    WHERE CASE jsonb_typeof(seen_by -> kind)
      WHEN 'boolean' THEN jsonb_array_length(ids) > 0
      WHEN 'array' THEN (seen_by -> kind) ?| ARRAY(SELECT jsonb_array_elements_text(ids)) END)
$$"""
"""Whether the caller is among those who had been able to see a row."""

_VERSION = ["_generation", "_source_version", "_epoch", "_read", "_translation"]

FUNCTIONS: Final = (TRACK, HAD_SEEN)


def access() -> Iterator[str]:
    """Row-level security of the departures, to run after `tidegate.access.operational_grants`."""
    table = "tidegate.departure"
    yield f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"
    yield f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY"
    yield f"GRANT SELECT ON {table} TO {READER}"
    yield f"GRANT EXECUTE ON FUNCTION tidegate.had_seen(jsonb) TO {READER}"
    yield f"GRANT EXECUTE ON FUNCTION tidegate.track() TO {WORKER}"
    rules = {
        "tidegate_worker_all": f"FOR ALL TO {WORKER} USING (true) WITH CHECK (true)",
        "tidegate_operator_select": f"FOR SELECT TO {OPERATOR} USING (true)",
        "tidegate_reader_select": f"FOR SELECT TO {READER} USING (tidegate.had_seen(seen_by))",
    }
    for name, rule in rules.items():
        yield f"DROP POLICY IF EXISTS {name} ON {table}"
        yield f"CREATE POLICY {name} ON {table} {rule}"


def column(shape: EntityShape) -> str:
    """Rows that are there get the migration's own transaction, without being rewritten: the default is not volatile."""
    return f'ALTER TABLE "{shape.table}" ADD COLUMN IF NOT EXISTS "{CHANGED}" bigint NOT NULL DEFAULT ({THIS})'


def trigger(shape: EntityShape) -> str:
    """Fires for a writer that forgot the column, and for a row that leaves a view; not for the worker's usual update.

    Who forgets it is a worker of an earlier release, which gives changed content a new event, or a person, who leaves
    the version alone. The fields themselves are not named: no migration could change the type of one that is.
    """
    readers = sorted({name for reader in shape.readers for name in reader.fields})
    # Texts of checked names; JSON of them holds no quote that could end the literal.
    declared = msgspec.json.encode(_fields_by_kind(shape)).decode()
    left = " OR ".join(['NEW."_deleted"', *([_differ(readers)] if readers else [])])
    forgotten = f'OLD."_event_id" <> NEW."_event_id" OR NOT {_differ(_VERSION)}'
    return (
        f'CREATE OR REPLACE TRIGGER "{shape.table}{CHANGED}" BEFORE UPDATE ON "{shape.table}" FOR EACH ROW WHEN ('
        f'(OLD."{CHANGED}" = NEW."{CHANGED}" AND ({forgotten})) OR (NOT OLD."_deleted" AND ({left}))) '
        f"EXECUTE FUNCTION tidegate.track('{shape.key.name}', '{declared}')"
    )


def index(shape: EntityShape) -> str:
    """Few pages in a range: what changed lately is scattered over the table."""
    return (
        f'CREATE INDEX CONCURRENTLY IF NOT EXISTS "{shape.table}{CHANGED}" ON "{shape.table}" '
        f'USING brin ("{CHANGED}") WITH (pages_per_range = 8, autosummarize = on)'
    )


def _fields_by_kind(shape: EntityShape) -> dict[str, list[str]]:
    """Kind of viewer → the fields that name one; none when a reader of the kind sees every row."""
    kinds: dict[str, list[str]] = {}
    for reader in shape.readers:
        kinds.setdefault(reader.kind, []).extend(reader.fields)
    everything = {reader.kind for reader in shape.readers if not reader.fields}
    return {kind: [] if kind in everything else fields for kind, fields in kinds.items()}


def _differ(names: list[str]) -> str:
    old, new = (", ".join(f"{row}.{quoted(name)}" for name in names) for row in ("OLD", "NEW"))
    return f"ROW({old}) IS DISTINCT FROM ROW({new})"
