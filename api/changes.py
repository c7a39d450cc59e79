"""What changed in a collection since a cursor: the SELECT, and the answer made of it.  (pure)

A position is a transaction id and a key. A page shows the rows whose last change lies beyond it, in the order of both, and
ends below the oldest transaction that still runs: whatever that one commits comes later, so nothing is skipped.
The id, the rows and the end are read in one statement, from one snapshot.

What has committed beyond the end is in no answer yet, so while there is any, the answer must not look as fresh as the
tables are: it says the time that the cursor brings, which was right when nothing was held back.

A row that is there is shown as it is now. One that the caller could see and cannot any more, because it was deleted or
because it has other readers, is a removal with nothing but its key. What the caller could never see is not mentioned.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import msgspec

from api.cursor import Position
from api.queries import TYPES, Query, given, placed, shown_row
from api.selection import Selection
from tidegate.access import quoted
from tidegate.entity import EntityShape, Field
from tidegate.tracking import CHANGED

_encoder = msgspec.json.Encoder()


class Place(msgspec.Struct, frozen=True):
    """Beyond this transaction and key. An empty key: beyond everything of the transactions before `xid`."""

    xid: int
    key: str = ""


class Since(msgspec.Struct, frozen=True):
    """What a cursor holds. `given_s` is Unix time; `as_of` is how fresh all that was told up to here was, if known."""

    place: Place
    given_s: int
    as_of: str | None = None

    def position(self) -> Position:
        return [self.place.xid, self.place.key, self.given_s, self.as_of]


class Changes(msgspec.Struct, frozen=True):
    """One page.

    newest   no transaction has begun beyond it; a place that lies there is of another database
    is_all   whether every change that has committed is told up to here
    """

    items: list[str]
    next: Place
    newest: int
    has_more: bool
    is_all: bool


def bound(shape: EntityShape, selection: Selection) -> str:
    """What a cursor of changes belongs to. A release in which others may read a row, or in which a row shows other
    fields, changes what is seen without a change of any row; so its cursors are others too."""
    return f"{shape.collection} changes {selection.text()} {_encoder.encode(shape.readers).decode()}"


def since_of(position: Position) -> Since:
    """What a cursor of ours holds."""
    xid, key, given_s, as_of = position
    return Since(Place(int(xid or 0), str(key)), int(given_s or 0), None if as_of is None else str(as_of))


def query(shape: EntityShape, fields: Sequence[Field], since: Place | None, limit: int) -> Query:
    """Up to `limit` changes and one more, if there is one; without a place only where to begin."""
    if since is None:
        return Query(BEGINNING, {})
    return Query(_statement(shape, fields, limit + 1), {"since": since.xid, "key": since.key})


def page(items: Sequence[str], since: Place | None, limit: int) -> Changes:
    """What `query` found."""
    until, newest, is_held = msgspec.json.decode(items[0], type=tuple[int, int, bool])
    found = [placed(item) for item in items[1:]]
    shown = found[:limit]
    if len(found) > limit:
        xid, key = msgspec.json.decode(shown[-1].place, type=tuple[int, str])
        following = Place(xid, key)
    else:
        # The end never goes back, whichever replica answers.
        following = max(since or Place(0), Place(until), key=lambda place: (place.xid, place.key))
    has_more = len(found) > limit
    lines = [_change(each.place, each.row) for each in shown]
    return Changes(lines, following, newest, has_more, is_all=not has_more and not is_held)


def _change(place: str, row: str) -> str:
    key = msgspec.json.decode(place, type=tuple[int, str])[1]
    said = _encoder.encode(key).decode()
    if not row:
        return f'{{"change":"removed","key":{said}}}'
    return f'{{"change":"shown","key":{said},"row":{row}}}'


_END = "pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
_ENDS = f"json_build_array({_END}, pg_snapshot_xmax(pg_current_snapshot())::text::bigint, {{held}})::text"
# Who begins reads the rows next, and those are whole.
BEGINNING = f"SELECT ARRAY[{_ENDS.format(held='false')}]"


@lru_cache(maxsize=256)
def _statement(shape: EntityShape, fields: Sequence[Field], limit: int) -> str:
    """Both halves read the same span; a row that is visible again is none that left."""
    key, table, changed = quoted(shape.key.name), quoted(shape.table), quoted(CHANGED)
    since, after = f"{given('since')}::bigint", given("key")
    end = f"(SELECT {_END})"
    stored_key = f'stored.{key}::text COLLATE "C"'
    columns = ", ".join(f"stored.{quoted(field.name)}" for field in shape.fields)
    left = f"FROM tidegate.departure AS gone WHERE gone.relation = '{shape.table}'"
    held = (
        # The first comparison is for the planner, who does not know the end.
        f"EXISTS (SELECT FROM {table} AS stored WHERE stored.{changed} >= {since} AND stored.{changed} >= {end}) "
        f"OR EXISTS (SELECT {left} AND gone.xid >= {since} AND gone.xid >= {end})"
    )
    return (
        f"SELECT ARRAY[{_ENDS.format(held=held)}] || ARRAY("
        "SELECT json_build_array(xid, key)::text || E'\\n' || coalesce(line, '') FROM ("
        f"(SELECT stored.{changed} AS xid, {stored_key} AS key, row_to_json(shown)::text AS line FROM ("
        f"SELECT {columns}, stored.{changed} FROM {table} AS stored "
        # The first comparison is what the index is asked, the second cuts a transaction in two.
        f"WHERE stored.{changed} >= {since} AND stored.{changed} < {end} "
        f"AND (stored.{changed}, {stored_key}) > ({since}, {after}) "
        f"ORDER BY stored.{changed}, {stored_key} LIMIT {limit}) AS stored {shown_row(fields, (), shape.key)}) "
        'UNION ALL (SELECT gone.xid, gone.key COLLATE "C", NULL FROM tidegate.departure AS gone '
        f"WHERE gone.relation = '{shape.table}' AND gone.xid >= {since} AND gone.xid < {end} "
        f'AND (gone.xid, gone.key COLLATE "C") > ({since}, {after}) '
        f"AND NOT EXISTS (SELECT FROM {table} AS stored WHERE stored.{key} = gone.key::{TYPES[shape.key.kind]}) "
        f'ORDER BY gone.xid, gone.key COLLATE "C" LIMIT {limit})'
        f") AS found ORDER BY xid, key LIMIT {limit})"
    )
