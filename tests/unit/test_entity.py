"""One class gives everything; a wrong class is refused with its name, the field and the remedy."""

from __future__ import annotations

import types
from datetime import date, datetime
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Literal
from uuid import UUID

import pytest

from tidegate.entity import EVERYONE, Entity, Kind, Meta, Reader, describe
from tidegate.errors import BubbleError

ALL = (Reader(EVERYONE),)


class Colour(Enum):
    RED = "red"
    GREEN = "green"


class Everything(Entity):
    """Every kind of field."""

    meta = Meta(collection="every-thing", key="number", version="changed_at", readers=(Reader("owner", ("owner",)),))
    number: int
    owner: str | None
    weight: Decimal
    ratio: float | None
    active: bool
    born_on: date
    changed_at: datetime
    token: UUID
    colour: Colour
    size: Literal["s", "m"]


def test_every_supported_type_has_its_kind() -> None:
    shape = describe(Everything)
    assert {field.name: (field.kind, field.nullable) for field in shape.fields} == {
        "number": (Kind.INTEGER, False),
        "owner": (Kind.TEXT, True),
        "weight": (Kind.DECIMAL, False),
        "ratio": (Kind.FLOAT, True),
        "active": (Kind.BOOLEAN, False),
        "born_on": (Kind.DATE, False),
        "changed_at": (Kind.TIMESTAMP, False),
        "token": (Kind.UUID, False),
        "colour": (Kind.TEXT, False),
        "size": (Kind.TEXT, False),
    }
    assert shape.field("colour").choices == ("red", "green")
    assert shape.field("size").choices == ("s", "m")
    assert (shape.name, shape.table, shape.collection) == ("everything", "every_thing", "every-thing")
    assert shape.key.name == "number"
    assert shape.version is not None
    assert shape.version.name == "changed_at"


def test_a_class_without_meta_is_refused() -> None:
    class Bare(Entity):
        number: str

    with pytest.raises(BubbleError, match=r"Bare: it has no `meta`; add `meta = Meta"):
        describe(Bare)


@pytest.mark.parametrize(
    ("meta", "text"),
    [
        (Meta(collection="things", key="nr", readers=ALL), r"Thing: meta.key names the field 'nr'.*number, seen"),
        (Meta(collection="things", key="note", readers=ALL), r"Thing.note: a key must be str, int or UUID"),
        (Meta(collection="things", key="number", version="at", readers=ALL), r"meta.version names the field 'at'"),
        (
            Meta(collection="things", key="number", version="number", readers=ALL),
            r"Thing.number: a version must be int",
        ),
        (Meta(collection="things", key="number"), r"Thing: meta.readers is empty, so nobody could read it; name who"),
        (
            Meta(collection="things", key="number", readers=(Reader("me", ("x",)),)),
            r"Reader\('me'\) names the field 'x'",
        ),
        (Meta(collection="things", key="number", readers=(Reader("me", ("seen",)),)), r"Thing.seen: a reader's field"),
        (Meta(collection="The Things", key="number", readers=ALL), r"meta.collection is 'The Things'; use lower-case"),
    ],
)
def test_a_wrong_meta_is_refused_by_name(meta: Meta, text: str) -> None:
    class Thing(Entity):
        number: str
        seen: bool
        note: str | None

    Thing.meta = meta
    with pytest.raises(BubbleError, match=text):
        describe(Thing)


class Mixed(str, Enum):  # noqa: UP042  (many write it so; its text is not its value)
    RED = "red"


class Better(StrEnum):
    RED = "red"


def keyed_by(hint: type) -> type[Entity]:
    namespace = {
        "__annotations__": {"colour": hint},
        "__module__": __name__,
        "meta": Meta(collection="things", key="colour", readers=ALL),
    }
    return types.new_class("Thing", (Entity,), exec_body=lambda body: body.update(namespace))


@pytest.mark.parametrize("hint", [Colour, Mixed])
def test_a_key_whose_text_is_not_its_value_is_refused(hint: type) -> None:
    with pytest.raises(BubbleError, match=r"Thing\.colour: a key of the type \w+ would never be found.* a StrEnum"):
        describe(keyed_by(hint))


def test_a_key_may_be_a_str_enum() -> None:
    assert describe(keyed_by(Better)).key.choices == ("red",)


@pytest.mark.parametrize("hint", [list[str], dict[str, int], bytes, str | int, Literal[1, 2], object])
def test_an_unsupported_type_is_refused_with_what_to_use(hint: object) -> None:
    namespace = {
        "__annotations__": {"number": str, "odd": hint},
        "__module__": __name__,
        "meta": Meta(collection="things", key="number", readers=ALL),
    }
    thing = types.new_class("Thing", (Entity,), exec_body=lambda body: body.update(namespace))
    with pytest.raises(BubbleError, match=r"Thing\.odd: the type .* has no column; use one of str, int"):
        describe(thing)
