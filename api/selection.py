"""What a request wants to see of a collection: which fields, which related rows, which rows, in which order.  (pure)

fields=number,status       these fields only, in the entity's order; the key is always among them
embed=origin,stops         related rows within each row, as the entity declares them
sort=-changed_at,number    by declared fields, each descending with a dash in front; the key decides among equals
status.in=booked,accepted  filters, see `api.filters`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from api.answer import Refused
from api.filters import Filter, filters_of, in_query, shown
from tidegate.entity import Embed, EntityShape, Field

LISTED = ("limit", "cursor", "sort", "fields", "embed")
SINGLE = ("fields", "embed")
MOST_SORTS = 3
DEFAULT_LIMIT = 50
LARGEST_LIMIT = 200


class Join(msgspec.Struct, frozen=True):
    """One embed, and the entity whose rows it shows."""

    embed: Embed
    shape: EntityShape


class Term(msgspec.Struct, frozen=True):
    """One step of the order. None comes last in ascending order and first in descending, as in PostgreSQL."""

    field: Field
    descending: bool = False


class Selection(msgspec.Struct, frozen=True):
    """`order` ends with the key, so no two rows are equal in it."""

    fields: tuple[Field, ...]
    joins: tuple[Join, ...] = ()
    filters: tuple[Filter, ...] = ()
    order: tuple[Term, ...] = ()

    def text(self) -> str:
        """The same for the same query, whatever order its parameters came in; a cursor is bound to it."""
        return msgspec.json.encode(
            (
                [field.name for field in self.fields],
                [join.embed.name for join in self.joins],
                [(each.field.name, each.operator, each.value) for each in self.filters],
                [(term.field.name, term.descending) for term in self.order],
            )
        ).decode()


def listed(shape: EntityShape, joins: Mapping[str, Join], query: Mapping[str, str]) -> Selection:
    """The selection of a collection's query. Raises Refused."""
    return Selection(
        fields=_fields(shape, query),
        joins=_joins(joins, query),
        filters=filters_of(shape.filters, query, LISTED),
        order=_order(shape, query),
    )


def single(shape: EntityShape, joins: Mapping[str, Join], query: Mapping[str, str]) -> Selection:
    """The selection of one row's query, whose parameters are known to be `SINGLE`. Raises Refused."""
    return Selection(_fields(shape, query), _joins(joins, query))


def fields_only(shape: EntityShape, query: Mapping[str, str]) -> Selection:
    """The selection of a query that chooses fields. Raises Refused."""
    return Selection(_fields(shape, query))


def _names(query: Mapping[str, str], parameter: str, known: Sequence[str]) -> list[str] | None:
    """The names that a parameter lists, each known and none twice; None without the parameter."""
    text = query.get(parameter)
    if text is None:
        return None
    names = text.split(",")
    for name in names:
        if name.removeprefix("-" if parameter == "sort" else "") not in known:
            there = f"there are {', '.join(known)}" if known else "this collection has none"
            detail = f"{parameter} names {shown(name)}; {there}"
            raise Refused(400, f"bad-{parameter}", f"Bad {parameter}", detail, where=in_query(parameter))
    if len(set(names)) < len(names):
        detail = f"{parameter} names one thing twice"
        raise Refused(400, f"bad-{parameter}", f"Bad {parameter}", detail, where=in_query(parameter))
    return names


def _fields(shape: EntityShape, query: Mapping[str, str]) -> tuple[Field, ...]:
    names = _names(query, "fields", [field.name for field in shape.fields])
    if names is None:
        return shape.fields
    return tuple(field for field in shape.fields if field.name in names or field == shape.key)


def _joins(joins: Mapping[str, Join], query: Mapping[str, str]) -> tuple[Join, ...]:
    names = _names(query, "embed", list(joins))
    return tuple(join for name, join in joins.items() if names is not None and name in names)


def _order(shape: EntityShape, query: Mapping[str, str]) -> tuple[Term, ...]:
    sortable = {field.name: field for field in (*shape.sorts, shape.key)}
    terms: list[Term] = []
    for name in _names(query, "sort", list(sortable)) or ():
        term = Term(sortable[name.removeprefix("-")], name.startswith("-"))
        if any(other.field == term.field for other in terms):
            detail = f"sort names {term.field.name} twice"
            raise Refused(400, "bad-sort", "Bad sort", detail, where=in_query("sort"))
        terms.append(term)
    if len(terms) > MOST_SORTS:
        detail = f"sort names {len(terms)} fields; {MOST_SORTS} are the most"
        raise Refused(400, "bad-sort", "Bad sort", detail, where=in_query("sort"))
    if any(term.field == shape.key for term in terms):
        # Nothing is left to decide after the key.
        place = next(place for place, term in enumerate(terms) if term.field == shape.key)
        return tuple(terms[: place + 1])
    # In the direction of the last, so that one index, read forwards or backwards, gives the whole order.
    return (*terms, Term(shape.key, terms[-1].descending if terms else False))
