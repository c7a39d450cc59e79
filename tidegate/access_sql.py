"""The SQL of the API's one round trip, as text: claims, freshness and rows in a single statement.  (pure)

`tidegate.migrate` runs `statements()`; the API calls the function by `READ_CALL` and looks at its own role by
`ROLE_CHECK` when it connects. Here are texts only, so the API gets them without the ORM and the
migration without asyncpg.

Why a function: the claims must be set before the first policy is evaluated, and within one SQL statement nothing
promises an order. In a function each step is a statement of its own. Why one statement from outside: it is
its own transaction, so the claims end with it, also behind a proxy that hands the session to the next caller.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tidegate.access import OPERATOR, READER, WORKER

READ_FUNCTION: Final = """
CREATE OR REPLACE FUNCTION tidegate.read(viewers text, statement text, arguments jsonb, sources text[])
RETURNS TABLE (items text[], freshness jsonb)
LANGUAGE plpgsql VOLATILE SECURITY INVOKER PARALLEL UNSAFE
AS $read$
BEGIN
    -- true: for this transaction only, which is this one call.
    PERFORM set_config('tidegate.viewers', viewers, true);
    -- Freshness before rows: each statement has its own snapshot, and the rows may be newer than they say, never older.
    SELECT coalesce(jsonb_object_agg(known.source, known.as_of), '{}'::jsonb)
      INTO freshness FROM tidegate.data_as_of(sources) AS known;
    -- The values travel as $1 and are never part of the text. The caller's own rights and policies apply.
    EXECUTE statement INTO items USING arguments;
    -- Should a caller ever wrap this in a longer transaction, the claims do not outlive the call.
    PERFORM set_config('tidegate.viewers', '', true);
    RETURN NEXT;
END
$read$
"""
"""`items` are JSON texts in order, `freshness` is source → time of its oldest watermark, or null when it has none yet.

`statement` is made by `api.queries` from an entity's shape: one row with one text[] column, `arguments` as $1.
The function gives no right that its caller lacks: it is SECURITY INVOKER, and the reader role can only SELECT.
Needs `tidegate.data_as_of(text[])`, which the same migration makes.
"""

_GRANTS: Final = (
    "REVOKE ALL ON FUNCTION tidegate.read(text, text, jsonb, text[]) FROM PUBLIC",
    f"GRANT EXECUTE ON FUNCTION tidegate.read(text, text, jsonb, text[]) TO {READER}",
)

READ_CALL: Final = "SELECT items, freshness FROM tidegate.read($1::text, $2::text, $3::jsonb, $4::text[])"

ROLE_CHECK: Final = f"""
SELECT current_user AS name,
       EXISTS (SELECT FROM pg_catalog.pg_roles AS r
               WHERE r.rolsuper AND pg_catalog.pg_has_role(current_user, r.oid, 'MEMBER')) AS superuser,
       EXISTS (SELECT FROM pg_catalog.pg_roles AS r
               WHERE r.rolbypassrls AND pg_catalog.pg_has_role(current_user, r.oid, 'MEMBER')) AS bypasses,
       ARRAY(SELECT c.relname::text FROM pg_catalog.pg_class AS c
             WHERE c.oid = ANY (found.oids) AND pg_catalog.pg_has_role(current_user, c.relowner, 'MEMBER')) AS owned,
       ARRAY(SELECT c.relname::text FROM pg_catalog.pg_class AS c
             WHERE c.oid = ANY (found.oids || pg_catalog.to_regclass('tidegate.departure')::oid)
               AND NOT (c.relrowsecurity AND c.relforcerowsecurity)) AS unguarded,
       ARRAY(SELECT r.rolname::text FROM pg_catalog.pg_roles AS r
             WHERE r.rolname <> '{READER}' AND pg_catalog.pg_has_role(current_user, r.oid, 'MEMBER')
               AND (r.rolname IN ('{OPERATOR}', '{WORKER}')
                    OR EXISTS (SELECT FROM pg_catalog.pg_policy AS p
                               WHERE p.polrelid = ANY (found.oids) AND p.polpermissive AND r.oid = ANY (p.polroles)))
             ORDER BY 1) AS wider,
       ARRAY(SELECT wanted FROM unnest($1::text[]) AS wanted
             WHERE pg_catalog.to_regclass(pg_catalog.quote_ident(wanted)) IS NULL) AS missing
FROM (SELECT ARRAY(SELECT pg_catalog.to_regclass(pg_catalog.quote_ident(wanted))::oid
                   FROM unnest($1::text[]) AS wanted) AS oids) AS found
"""
"""$1 are the entity tables. Rights count that the role has directly, by membership, or could take by SET ROLE.

`wider` are the roles, other than the reader's, whose policies show the caller rows besides those of the claims.
"""


def statements() -> Iterator[str]:
    """The function and who may call it, to run after `tidegate.access`; one statement each, as drivers want it."""
    yield READ_FUNCTION
    yield from _GRANTS
