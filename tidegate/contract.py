"""The event contract as JSON Schema (draft 2020-12), made from the entities.  (pure)

`tidegate.codec` writes the events, this says what they look like; a test holds the two together. Consumers of the
stream validate against it, and a change of it is a change of the contract. It holds for the events of the releases before
and after this one too, as far as docs/EVENTS.md promises: what is not known here is allowed, in the envelope and in the
entity, and a field that may be null may be missing.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tidegate.bubble import Bubble
from tidegate.entity import Entity, EntityShape, Kind, describe
from tidegate.event import Cause, Operation

Schema = dict[str, Any]
"""A JSON Schema, as JSON values."""

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_TIME: Schema = {"type": "string", "format": "date-time"}
_TEXT: Schema = {"type": "string", "minLength": 1}


def entity_schemas(bubble: Bubble, ref_template: str) -> dict[str, Schema]:
    """Class name → schema, for every entity and what it refers to.

    `ref_template` says where the schemas will stand, such as "#/components/schemas/{name}". All fields of an
    entity are required: what a release writes is complete, a value that is missing is null.
    """
    _, schemas = msgspec.json.schema_components(bubble.entities, ref_template=ref_template)
    for entity in bubble.entities:
        _complete(schemas[entity.__name__], describe(entity))
    return schemas


def event_contract(bubble: Bubble) -> Schema:
    """Every event that the bubble's poller publishes."""
    definitions = entity_schemas(bubble, "#/$defs/{name}")
    for entity in bubble.entities:
        schema = definitions[entity.__name__]
        schema["required"] = [field.name for field in describe(entity).fields if not field.nullable]
        del schema["additionalProperties"]
    events = {f"{entity.__name__}.{operation}": _change(entity, operation)
              for entity in bubble.entities for operation in Operation}  # fmt: skip
    events |= {"tidegate.watermark": _watermark(), "tidegate.quarantine": _quarantine()}
    return {
        "$schema": DIALECT,
        "$id": f"urn:tidegate:{bubble.name}:events",
        "title": f"The events of {bubble.name}",
        "description": "CloudEvents 1.0 in JSON, one in each record; the partition key is <entity>:<key>.",
        "oneOf": [{"$ref": f"#/$defs/{name}"} for name in events],
        "$defs": definitions | events,
    }


def _complete(schema: Schema, shape: EntityShape) -> None:
    """What msgspec leaves open: datetimes of an entity are always aware, no field is left out, and none added."""
    schema["required"] = [field.name for field in shape.fields]
    schema["additionalProperties"] = False
    for field in shape.fields:
        if field.kind is Kind.TIMESTAMP:
            stated = schema["properties"][field.name]
            for choice in stated.get("anyOf", [stated]):
                if choice.get("type") == "string":
                    choice["format"] = "date-time"


def _envelope(event_type: str, title: str, **attributes: Schema) -> Schema:
    stated: dict[str, Schema] = {
        "specversion": {"const": "1.0"},
        "id": _TEXT,
        "source": {**_TEXT, "description": "The name of the source, as the bubble declares it."},
        "type": {"const": event_type},
        **attributes,
    }
    return {"title": title, "type": "object", "properties": stated, "required": list(stated)}


def _change(entity: type[Entity], operation: Operation) -> Schema:
    shape = describe(entity)
    gone = operation is Operation.DELETE
    schema = _envelope(
        f"tidegate.{shape.name}.{operation}",
        f"{shape.title} {'It is gone.' if gone else 'It is new or changed.'}",
        subject={**_TEXT, "description": f"The {shape.key.name} of the row, as text."},
        time={**_TIME, "description": "When it changed, by the back office's clock."},
        tidegateversion={
            "type": "string",
            "pattern": r"^[0-9]+(\.[0-9]+){4}$",
            "description": "generation.source_version.epoch.read.translation; compared number by number.",
        },
        tidegatecause={"enum": [cause.value for cause in Cause], "description": "Why it was published."},
        tidegateobserved={**_TIME, "description": "When the poller saw it, by the back office's clock."},
    )
    if gone:
        schema["properties"]["data"] = False
    else:
        schema["properties"] |= {
            "datacontenttype": {"const": "application/json"},
            "data": {"$ref": f"#/$defs/{entity.__name__}"},
        }
        schema["required"] += ["data"]
    return schema


def _watermark() -> Schema:
    schema = _envelope(
        "tidegate.watermark",
        "Everything of the source that changed before `time` was published before this event.",
        time={**_TIME, "description": "By the back office's clock."},
    )
    schema["properties"]["data"] = False
    return schema


def _quarantine() -> Schema:
    fields = ("entity", "stage", "reason", "message", "raw_base64")
    raw: Schema = {"type": "string", "contentEncoding": "base64", "description": "The row as it came, whole."}
    schema = _envelope(
        "tidegate.quarantine",
        "A raw row that could not be translated.",
        time={**_TIME, "description": "When the poller saw it."},
        data={
            "type": "object",
            "properties": {name: raw if name == "raw_base64" else {"type": "string"} for name in fields},
            "required": list(fields),
        },
    )
    schema["properties"]["subject"] = {**_TEXT, "description": "The key, where the raw row shows one."}
    return schema
