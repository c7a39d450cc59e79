"""Who may see a row, as PostgreSQL row-level security: the SQL text, derived from the entities.  (pure)

`tidegate.migrate` runs these statements after every migration; they are idempotent. The claims of a request are
the transaction-local setting `tidegate.viewers`, a JSON object of viewer kind → ids; unset means nobody, so a
forgotten claim shows nothing. The facts behind each line are PostgreSQL's own: a table's owner passes policies
by unless FORCE is set, and a setting is '' (not NULL) after a transaction that set it locally.
"""

from __future__ import annotations

from collections.abc import Iterator

from tidegate.entity import EntityShape, Reader

WORKER = "tidegate_worker"
READER = "tidegate_reader"
OPERATOR = "tidegate_operator"
ROLES = (WORKER, READER, OPERATOR)
"""Group roles without login; a deployment makes its login users members."""


def create_role(role: str) -> str:
    return f"DO $$ BEGIN CREATE ROLE {role} NOLOGIN NOBYPASSRLS NOSUPERUSER; EXCEPTION WHEN duplicate_object THEN NULL; END $$"


VIEWER_IDS = """
CREATE OR REPLACE FUNCTION tidegate.viewer_ids(kind text) RETURNS text[]
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog AS $$
BEGIN
  RETURN ARRAY(SELECT jsonb_array_elements_text(nullif(current_setting('tidegate.viewers', true), '')::jsonb -> kind));
END
$$"""
"""The ids that the caller has of one kind; none without claims.

In PL/pgSQL, as all that a read calls: a session keeps its plans, while those of a function in SQL are made at every call.
"""

DATA_AS_OF = """
CREATE OR REPLACE FUNCTION tidegate.data_as_of(sources text[]) RETURNS TABLE (source text, as_of timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog SET plan_cache_mode = force_generic_plan AS $$
#variable_conflict use_column
BEGIN
  RETURN QUERY SELECT wanted.source, CASE
    WHEN EXISTS (SELECT FROM tidegate.dead_letter AS letter
                 WHERE letter.resolved_at IS NULL AND letter.source = wanted.source AND letter.entity IS NOT NULL)
      THEN NULL
    WHEN EXISTS (SELECT FROM tidegate.dead_letter AS letter
                 WHERE letter.resolved_at IS NULL AND letter.source IS NULL
                   AND letter.reason = 'gap' AND letter.stage = 'read'
                   AND letter.stream NOT IN (SELECT stream FROM tidegate.inbound_stream)) THEN NULL
    WHEN count(shard.shard_id) > 0 AND count(shard.shard_id) = count(watermark.as_of) THEN min(watermark.as_of) END
  FROM unnest(sources) AS wanted(source)
  LEFT JOIN tidegate.shard ON shard.stream NOT IN (SELECT stream FROM tidegate.inbound_stream)
  LEFT JOIN tidegate.watermark ON watermark.stream = shard.stream AND watermark.shard_id = shard.shard_id
                              AND watermark.source = wanted.source
  GROUP BY wanted.source;
END
$$"""
"""How fresh each source is: its oldest watermark over all shards, NULL while that is not the whole truth.

It is not while a shard has no watermark, while a dead letter of the source is open (a row is missing or older than the
watermark says), or while a gap in the stream is open, for lost records may be of any source. A filed watermark is no
row and counts for nothing. Streams of arrivals bring no rows.
Records that could not even be decoded have no source and count for none, although one may
have been a source's: whoever may write to the stream could blind the front office with garbage otherwise. They are
alarmed on and wait in tidegate.dead_letter.
"""

FUNCTIONS = (VIEWER_IDS, DATA_AS_OF)


_OPERATED = (
    "resolved_at", "resolution", "resolved_by", "replayed_at", "replays", "edited_payload", "edited_identity", "edited_at",
    "edited_by", "entity", "key", "version",
)  # fmt: skip


def operational_grants() -> Iterator[str]:
    """What each role may do with the operational tables and functions."""
    yield "REVOKE ALL ON SCHEMA tidegate FROM PUBLIC"
    yield "REVOKE ALL ON ALL FUNCTIONS IN SCHEMA tidegate FROM PUBLIC"
    yield f"GRANT USAGE ON SCHEMA tidegate TO {', '.join(ROLES)}"
    yield f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA tidegate TO {WORKER}"
    yield f"GRANT SELECT ON ALL TABLES IN SCHEMA tidegate TO {OPERATOR}"
    # What came stays as it came, whatever a person makes of it.
    yield f"GRANT UPDATE ({', '.join(_OPERATED)}) ON tidegate.dead_letter TO {OPERATOR}"
    yield f"GRANT UPDATE (state, due_at, tried_since, answered_at) ON tidegate.outbox TO {OPERATOR}"
    yield f"GRANT EXECUTE ON FUNCTION tidegate.viewer_ids(text), tidegate.data_as_of(text[]) TO {', '.join(ROLES)}"


def entity_access(shape: EntityShape) -> Iterator[str]:
    """Row-level security of one entity's table."""
    table = quoted(shape.table)
    yield f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"
    yield f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY"
    yield f"REVOKE ALL ON {table} FROM PUBLIC, {', '.join(ROLES)}"
    yield f"GRANT SELECT ON {table} TO {READER}, {OPERATOR}"
    yield f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {WORKER}"
    yield from _policy(table, "tidegate_worker_all", f"FOR ALL TO {WORKER} USING (true) WITH CHECK (true)")
    yield from _policy(table, "tidegate_operator_select", f"FOR SELECT TO {OPERATOR} USING (true)")
    visible = " OR ".join(reader_condition(reader) for reader in shape.readers)
    yield from _policy(
        table, "tidegate_reader_select", f'FOR SELECT TO {READER} USING (NOT "_deleted" AND ({visible}))'
    )


def _policy(table: str, name: str, rule: str) -> Iterator[str]:
    yield f"DROP POLICY IF EXISTS {name} ON {table}"
    yield f"CREATE POLICY {name} ON {table} {rule}"


def reader_condition(reader: Reader) -> str:
    """The rows that a declaration shows, as SQL of the policy."""
    # The sub-select makes PostgreSQL look the claims up once per query instead of once per row.
    ids = f"(SELECT tidegate.viewer_ids('{reader.kind}'))"
    if not reader.fields:
        return f"cardinality({ids}) > 0"
    return " OR ".join(f"{quoted(name)}::text = ANY ({ids}::text[])" for name in reader.fields)


def quoted(name: str) -> str:
    """An SQL identifier; `tidegate.entity` admits no name that holds a quote."""
    return f'"{name}"'
