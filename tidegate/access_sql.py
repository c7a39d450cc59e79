"""The SQL of the API's one round trip, as text: claims, freshness and rows in a single statement.  (pure)

The API sends `read_statement` and looks at its own role by `ROLE_CHECK` when it connects. Here are texts only, so the API
gets them without the ORM.

Why one statement: it is its own transaction, so the claims end with it, also behind a proxy that hands the session to
the next caller; and a session that may keep prepared statements plans each query once, not with every request. The claims
must be set before the first policy looks at them. Within a statement hardly anything promises an order, but CASE does:
the condition that sets them is evaluated before the sub-select that reads the rows. Were it otherwise, nobody would see
anything: what a transaction has not set shows nothing.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from tidegate.access import OPERATOR, READER, WORKER

_READ: Final = """
SELECT CASE WHEN set_config('tidegate.viewers', $1::jsonb ->> 'viewers', true) <> '' THEN ({rows}) END AS items,
       (SELECT coalesce(jsonb_object_agg(known.source, known.as_of), '{{}}'::jsonb)
        FROM tidegate.data_as_of($2::text[]) AS known) AS freshness
"""


@lru_cache(maxsize=1024)
def read_statement(rows: str) -> str:
    """The statement that reads `rows` as a caller: $1 are the caller's `viewers` and the arguments of `rows`, $2 the sources.

    `rows` is made by `api.queries` from an entity's shape: a SELECT of one row with one text[] column. The answer is one
    row: `items` are JSON texts in order, `freshness` is source → time of its oldest watermark, or null when it has none
    yet. Both are of one snapshot. The rows are read with the caller's own rights and policies; nothing here gives more.
    """
    return _READ.format(rows=rows)


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
