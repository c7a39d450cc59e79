"""Entity: one typed class gives the stream contract, the table and the REST resource.  (pure)

    class Parcel(Entity):
        meta = Meta(collection="parcels", key="number", version="changed_at",
                    readers=(Reader("customer", ("sender", "recipient")),))
        number: str
        sender: str
        recipient: str
        changed_at: datetime

`describe(Parcel)` reads the class once and refuses what the table or the API could not carry, naming the
class, the field and the remedy.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin
from uuid import UUID

import msgspec

from tidegate.errors import BubbleError

EVERYONE = "everyone"
"""The viewer kind that every signed-in caller has."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,57}\Z")
_COLLECTION = re.compile(r"[a-z][a-z0-9_-]{0,57}\Z")


class Reader(msgspec.Struct, frozen=True):
    """Who may read a row: a viewer of `kind` whose id stands in one of `fields`; no fields means every row."""

    kind: str
    fields: tuple[str, ...] = ()


class Embed(msgspec.Struct, frozen=True, kw_only=True):
    """Related rows that the API shows within a row when asked to (`?embed=name`), as far as the caller may see them.

    name        what they are called there
    collection  whose rows they are
    field       to one: my field that holds the other row's key; null is shown where there is none
    by          to many: the other's field that holds my key; the first `most` of them are shown, by key
    """

    name: str
    collection: str
    field: str | None = None
    by: str | None = None
    most: int = 20


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """What an entity says about itself beside its fields.

    collection  the REST collection, and the table's name (dashes become underscores)
    key         the field whose text identifies a row, unique in the back office
    version     the field with the back office's revision (int) or modification time (datetime); None when
                it has neither, then the order of observation decides
    readers     who may see a row; a caller that matches none sees nothing
    filters     fields by which the API filters (`?status=delivered&changed_at.gte=…`)
    sorts       fields by which it sorts, besides the key
    embeds      related rows that it shows within a row
    indexes     fields whose filters or order must stay fast over many visible rows; each makes every write dearer
    strict_order
                whether no change of a row may be applied while an older one of it is a dead letter: later ones are
                parked until a person has replayed, mended or dropped it. Else a newer change takes its place
    """

    collection: str
    key: str
    version: str | None = None
    readers: tuple[Reader, ...] = ()
    filters: tuple[str, ...] = ()
    sorts: tuple[str, ...] = ()
    embeds: tuple[Embed, ...] = ()
    indexes: tuple[str, ...] = ()
    strict_order: bool = False


class Entity(msgspec.Struct, kw_only=True):
    """The base of a bubble's entities. Subclasses set `meta` and declare typed fields."""

    meta: ClassVar[Meta]


AnEntity = typing.TypeVar("AnEntity", bound=Entity)


def tolerant(cls: type[AnEntity]) -> type[AnEntity]:
    """The entity as events of other releases are read: a field that may be None may also be missing.

    A subclass with the same fields in the same order; the class itself where that changes nothing.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = msgspec.structs.fields(cls)
    if not any(each.required and _is_nullable(hints[each.name]) for each in fields):
        return cls
    stated = [(each.name, hints[each.name], _missing(each, hints[each.name])) for each in fields]
    made = msgspec.defstruct(cls.__name__, stated, bases=(cls,), kw_only=True, module=cls.__module__)
    return typing.cast("type[AnEntity]", made)


def _missing(field: msgspec.structs.FieldInfo, hint: Any) -> Any:
    """What stands for a field that is missing."""
    if field.default_factory is not msgspec.NODEFAULT:
        return msgspec.field(default_factory=field.default_factory, name=field.encode_name)
    if field.required and not _is_nullable(hint):
        return msgspec.field(name=field.encode_name)
    return msgspec.field(default=None if field.required else field.default, name=field.encode_name)


def _is_nullable(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)


class Kind(StrEnum):
    """The column types an entity can have; every room (table, SQL, OpenAPI) maps from these."""

    TEXT = "text"
    INTEGER = "integer"
    FLOAT = "float"
    BOOLEAN = "boolean"
    DECIMAL = "decimal"
    DATE = "date"
    TIMESTAMP = "timestamp"
    UUID = "uuid"


class Field(msgspec.Struct, frozen=True, cache_hash=True):
    """One field of an entity. `choices` is the closed list of a Literal or Enum, else empty."""

    name: str
    kind: Kind
    nullable: bool
    choices: tuple[str, ...] = ()


class EntityShape(msgspec.Struct, frozen=True, cache_hash=True):
    """An entity class as the rooms see it."""

    name: str
    table: str
    collection: str
    key: Field
    version: Field | None
    fields: tuple[Field, ...]
    readers: tuple[Reader, ...]
    title: str
    filters: tuple[Field, ...] = ()
    sorts: tuple[Field, ...] = ()
    embeds: tuple[Embed, ...] = ()
    indexes: tuple[str, ...] = ()
    is_strict: bool = False

    def field(self, name: str) -> Field:
        return next(field for field in self.fields if field.name == name)


_KINDS: Mapping[type, Kind] = {
    str: Kind.TEXT,
    int: Kind.INTEGER,
    float: Kind.FLOAT,
    bool: Kind.BOOLEAN,
    Decimal: Kind.DECIMAL,
    date: Kind.DATE,
    datetime: Kind.TIMESTAMP,
    UUID: Kind.UUID,
}
_SUPPORTED = "str, int, float, bool, Decimal, date, datetime, UUID, a Literal or Enum of strings, and `| None` of each"


def entity_name(cls: type[Entity]) -> str:
    """`ParcelStop` → `parcel_stop`: the entity's name in events, logs and dead letters."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()


def describe(cls: type[Entity]) -> EntityShape:
    """Read an entity class.

    Raises:
        BubbleError: the class has no Meta, an unusable name, an unsupported type, or a key, version or reader
            field that does not exist or does not fit.
    """
    meta = getattr(cls, "meta", None)
    if not isinstance(meta, Meta):
        raise BubbleError(f"{cls.__name__}: it has no `meta`; add `meta = Meta(collection=…, key=…)` to the class")
    _check_name(cls, "meta.collection", meta.collection, _COLLECTION)
    fields = tuple(_fields(cls))
    by_name = {field.name: field for field in fields}
    return EntityShape(
        name=entity_name(cls),
        table=meta.collection.replace("-", "_"),
        collection=meta.collection,
        key=_key_field(cls, meta, by_name),
        version=_version_field(cls, meta, by_name),
        fields=fields,
        readers=_readers(cls, meta, by_name),
        title=(cls.__doc__ or cls.__name__).strip().splitlines()[0],
        filters=tuple(_lookup(cls, "meta.filters", name, by_name) for name in meta.filters),
        sorts=tuple(_lookup(cls, "meta.sorts", name, by_name) for name in meta.sorts),
        embeds=tuple(_embed(cls, embed, by_name) for embed in meta.embeds),
        indexes=tuple(_lookup(cls, "meta.indexes", name, by_name).name for name in meta.indexes),
        is_strict=meta.strict_order,
    )


def _fields(cls: type[Entity]) -> typing.Iterator[Field]:
    hints = typing.get_type_hints(cls, include_extras=True)
    for name in cls.__struct_fields__:
        _check_name(cls, f"field {name!r}", name, _NAME)
        yield _field(cls, name, hints[name])


def _field(cls: type[Entity], name: str, hint: Any) -> Field:
    nullable = False
    if get_origin(hint) in (Union, types.UnionType):
        members = [member for member in get_args(hint) if member is not type(None)]
        nullable = len(members) < len(get_args(hint))
        if len(members) != 1:
            raise _unsupported(cls, name, hint)
        hint = members[0]
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) is Literal and all(isinstance(choice, str) for choice in get_args(hint)):
        return Field(name, Kind.TEXT, nullable, tuple(get_args(hint)))
    if isinstance(hint, type) and issubclass(hint, Enum):
        if not all(isinstance(member.value, str) for member in hint):
            raise _unsupported(cls, name, hint)
        return Field(name, Kind.TEXT, nullable, tuple(member.value for member in hint))
    kind = _KINDS.get(hint) if isinstance(hint, type) else None
    if kind is None:
        raise _unsupported(cls, name, hint)
    return Field(name, kind, nullable)


def _unsupported(cls: type[Entity], name: str, hint: object) -> BubbleError:
    shown = getattr(hint, "__name__", None) if isinstance(hint, type) else str(hint)
    return BubbleError(
        f"{cls.__name__}.{name}: the type {shown} has no column; use one of {_SUPPORTED}, "
        "or split the value into fields of those types in the translator"
    )


def _check_name(cls: type, what: str, name: str, pattern: re.Pattern[str]) -> None:
    if not pattern.match(name):
        raise BubbleError(
            f"{cls.__name__}: {what} is {name!r}; use lower-case letters, digits and underscores, starting with a letter"
        )


def _lookup(cls: type[Entity], role: str, name: str, by_name: Mapping[str, Field]) -> Field:
    if name not in by_name:
        raise BubbleError(
            f"{cls.__name__}: {role} names the field {name!r}, which does not exist; "
            f"its fields are {', '.join(by_name)}"
        )
    return by_name[name]


def _key_field(cls: type[Entity], meta: Meta, by_name: Mapping[str, Field]) -> Field:
    key = _lookup(cls, "meta.key", meta.key, by_name)
    if key.nullable or key.kind not in (Kind.TEXT, Kind.INTEGER, Kind.UUID):
        raise BubbleError(
            f"{cls.__name__}.{key.name}: a key must be str, int or UUID and never None; "
            "join several key columns into one text in the translator"
        )
    hint = typing.get_type_hints(cls)[key.name]
    # An event names its row by str(key), and `str(Colour.RED)` is "Colour.RED", which no row is called.
    if isinstance(hint, type) and issubclass(hint, Enum) and any(str(member) != member.value for member in hint):
        raise BubbleError(
            f"{cls.__name__}.{key.name}: a key of the type {hint.__name__} would never be found, for the text of its "
            f"members is not their value; make {hint.__name__} a StrEnum, or the key a str"
        )
    return key


def _version_field(cls: type[Entity], meta: Meta, by_name: Mapping[str, Field]) -> Field | None:
    if meta.version is None:
        return None
    version = _lookup(cls, "meta.version", meta.version, by_name)
    if version.nullable or version.kind not in (Kind.INTEGER, Kind.TIMESTAMP):
        raise BubbleError(
            f"{cls.__name__}.{version.name}: a version must be int (a revision) or datetime (a modification time) and "
            "never None; leave meta.version out when the back office has neither"
        )
    return version


def _readers(cls: type[Entity], meta: Meta, by_name: Mapping[str, Field]) -> tuple[Reader, ...]:
    if not meta.readers:
        raise BubbleError(
            f"{cls.__name__}: meta.readers is empty, so nobody could read it; name who may, "
            f'for example Reader("{EVERYONE}") for every signed-in caller'
        )
    for reader in meta.readers:
        _check_name(cls, "a reader's kind", reader.kind, _NAME)
        for name in reader.fields:
            field = _lookup(cls, f"Reader({reader.kind!r})", name, by_name)
            if field.kind not in (Kind.TEXT, Kind.INTEGER, Kind.UUID):
                raise BubbleError(f"{cls.__name__}.{name}: a reader's field must be str, int or UUID")
    return meta.readers


_MOST_EMBEDDED = 100


def _embed(cls: type[Entity], embed: Embed, by_name: Mapping[str, Field]) -> Embed:
    """What can be told without the other entity; `tidegate.bubble.check` does the rest."""
    name = f"{cls.__name__}: Embed({embed.name!r})"
    _check_name(cls, f"the name of {embed.name!r} in meta.embeds", embed.name, _NAME)
    if embed.name in by_name or sum(other.name == embed.name for other in cls.meta.embeds) > 1:
        raise BubbleError(f"{name}: the name is a field's or another embed's; give it one of its own")
    if (embed.field is None) == (embed.by is None):
        raise BubbleError(f"{name}: say either `field` (to one row) or `by` (to many)")
    if embed.field is not None:
        _lookup(cls, f"Embed({embed.name!r})", embed.field, by_name)
    if not 1 <= embed.most <= _MOST_EMBEDDED:
        raise BubbleError(f"{name}: most is {embed.most}; it must be from 1 to {_MOST_EMBEDDED}")
    return embed
