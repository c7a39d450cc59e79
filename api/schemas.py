"""The parts of the specification that entities and reports make: parameters, rows, lines.  (pure)"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from api.filters import LARGEST_BIGINT, LONGEST_VALUE, MOST_VALUES, SMALLEST_BIGINT, operators_of
from api.selection import MOST_SORTS, Join
from tidegate.bubble import Bubble
from tidegate.contract import Schema
from tidegate.entity import EntityShape, Field, Kind
from tidegate.report import Measure, Period, Report

STRING: Schema = {"type": "string"}

_VALUES: dict[Kind, Schema] = {
    Kind.TEXT: {"type": "string", "maxLength": LONGEST_VALUE},
    Kind.INTEGER: {"type": "integer", "format": "int64", "minimum": SMALLEST_BIGINT, "maximum": LARGEST_BIGINT},
    Kind.FLOAT: {"type": "number"},
    Kind.BOOLEAN: {"type": "boolean"},
    Kind.DECIMAL: {"type": "string", "format": "decimal", "pattern": r"^-?[0-9]{1,40}(\.[0-9]{1,40})?$"},
    Kind.DATE: {"type": "string", "format": "date"},
    Kind.TIMESTAMP: {"type": "string", "format": "date-time"},
    Kind.UUID: {"type": "string", "format": "uuid"},
}
_WORDS = {
    "eq": "{0} is this.",
    "in": "{0} is one of these. A comma within a value is written as \\,",
    "lt": "{0} is less than this.",
    "lte": "{0} is at most this.",
    "gt": "{0} is more than this.",
    "gte": "{0} is at least this.",
    "prefix": "{0} begins with this.",
    "null": "Whether {0} has no value.",
}


def value(field: Field) -> Schema:
    """One value of the field, as a parameter."""
    return {"type": "string", "enum": list(field.choices)} if field.choices else _VALUES[field.kind]


def parameter(name: str, description: str, schema: Schema, **more: object) -> Schema:
    return {"name": name, "in": "query", "description": description, "schema": schema, **more}


def filter_parameters(fields: Sequence[Field], reserved: Sequence[str] = ()) -> Iterator[Schema]:
    for field in fields:
        for operator in operators_of(field):
            bare = operator == "eq" and field.name not in reserved
            name = field.name if bare else f"{field.name}.{operator}"
            words = _WORDS[operator].format(field.name)
            if operator == "in":
                values: Schema = {"type": "array", "items": value(field), "minItems": 1, "maxItems": MOST_VALUES}
                yield parameter(name, words, values, style="form", explode=False)
            else:
                yield parameter(name, words, {"type": "boolean"} if operator == "null" else value(field))


def choice_parameters(shape: EntityShape, joins: Sequence[Join] = (), *, sorts: bool = False) -> Iterator[Schema]:
    """`fields`, and `embed` and `sort` where there is something to choose."""
    names = [field.name for field in shape.fields]
    yield _list("fields", f"Show these only; {shape.key.name} is always shown.", names)
    if joins:
        yield _list("embed", "Show these related rows within each row.", [join.embed.name for join in joins])
    if sorts:
        sortable = dict.fromkeys([*(field.name for field in shape.sorts), shape.key.name])
        terms = [f"{dash}{name}" for name in sortable for dash in ("", "-")]
        yield _list("sort", "The order; a dash in front turns it round.", terms, most=MOST_SORTS)


def _list(name: str, words: str, choices: list[str], most: int | None = None) -> Schema:
    items: Schema = {"type": "array", "items": {"type": "string", "enum": choices}, "minItems": 1, "uniqueItems": True}
    return parameter(name, words, {**items, **({"maxItems": most} if most else {})}, style="form", explode=False)


def shown_rows(bubble: Bubble, entities: dict[str, Schema], joins: dict[str, Sequence[Join]]) -> dict[str, Schema]:
    """Name → what a row of each entity can look like in an answer: some of its fields, and what is embedded."""
    names = {shape.collection: entity.__name__ for entity, shape in zip(bubble.entities, bubble.shapes, strict=True)}
    found: dict[str, Schema] = {}
    for shape in bubble.shapes:
        whole = entities[names[shape.collection]]
        embedded = {join.embed.name: _embedded(join, names[join.shape.collection]) for join in joins[shape.collection]}
        found[f"{names[shape.collection]}Shown"] = {
            "title": f"{names[shape.collection]}Shown",
            "description": f"{shape.title} All of it, or what `fields` and `embed` ask for.",
            "type": "object",
            "properties": {**whole["properties"], **embedded},
            "required": [shape.key.name],
            "additionalProperties": False,
        }
    return found


def _embedded(join: Join, name: str) -> Schema:
    reference: Schema = {"$ref": f"#/components/schemas/{name}"}
    if join.embed.field is not None:
        words = f"The {join.shape.name} of {join.embed.field}, with embed={join.embed.name}; null where there is none."
        return {"anyOf": [reference, {"type": "null"}], "description": words, "x-embed": True}
    words = f"With embed={join.embed.name}: up to {join.embed.most}, by {join.shape.key.name}."
    return {"type": "array", "items": reference, "maxItems": join.embed.most, "description": words, "x-embed": True}


def report_lines(report: Report, shape: EntityShape) -> Schema:
    """The body of a report's answer."""
    columns = {each if isinstance(each, str) else each.name: _group(each, shape) for each in report.by}
    columns |= {measure.name: _measure(measure, shape) for measure in report.measures}
    line: Schema = {
        "type": "object", "properties": columns, "required": list(columns), "additionalProperties": False,
    }  # fmt: skip
    rows: Schema = {"type": "array", "items": line, "maxItems": report.most_rows}
    return {
        "type": "object",
        "properties": {"report": {"const": report.name}, "rows": rows},
        "required": ["report", "rows"],
        "additionalProperties": False,
    }


def _group(each: str | Period, shape: EntityShape) -> Schema:
    if isinstance(each, Period):
        return {"type": ["string", "null"], "description": f"The {each.unit} of {each.field}, in {each.zone}."}
    return _nullable(value(shape.field(each)))


def _measure(measure: Measure, shape: EntityShape) -> Schema:
    if measure.field is None:
        return {"type": "integer", "minimum": 0, "description": "How many."}
    field = shape.field(measure.field)
    words = {"description": f"The {measure.how} of {field.name}; null where nothing has one."}
    if measure.how == "avg" and field.kind is not Kind.DECIMAL:
        return {"type": ["number", "null"], **words}
    if measure.how == "sum" and field.kind is Kind.INTEGER:
        return {"type": ["integer", "null"], **words}
    if field.kind is Kind.DECIMAL:
        return {"type": ["string", "null"], "format": "decimal", **words}
    return {**_nullable(value(field)), **words}


def _nullable(schema: Schema) -> Schema:
    """Rows from before a field was required may have none. Bounds of parameters are none of answers."""
    kept = {name: part for name, part in schema.items() if name in ("type", "format", "enum")}
    kept["type"] = [kept["type"], "null"]
    if "enum" in kept:
        kept["enum"] = [*kept["enum"], None]
    return kept
