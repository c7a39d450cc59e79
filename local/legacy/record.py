"""One row of a back office in its clean form. The legacy form is rendered from it, never stored.

A back office declares one `Record` subclass per entity:

    class Loan(Record, frozen=True, kw_only=True):
        entity: ClassVar[str] = "loan"
        editable: ClassVar[tuple[str, ...]] = ("title",)
        number: str                # the first field is the key
        title: str
        changed_at: datetime = NEVER    # set at commit, whole seconds
        revision: int = 0               # set at commit, +1 at each change of this row
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar, Self, cast

import msgspec

Clean = str | int | float | bool | None
Row = dict[str, Clean]

NEVER = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a commit gives to a changed row: `at` is UTC in whole seconds; `revision` rises over the
    whole back office with every change and is never reset."""

    at: datetime
    revision: int


@dataclass(frozen=True, slots=True)
class Viewer:
    """Somebody signed in to the front office, such as customer:1001."""

    kind: str
    id: str

    @classmethod
    def parse(cls, text: str) -> "Viewer":
        """Read `kind:id`. Raises ValueError for anything else."""
        kind, colon, ident = text.partition(":")
        if not (kind and colon and ident):
            raise ValueError(f"a viewer is written kind:id, not {text!r}")
        return cls(kind, ident)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all rows. Everything has a default that suits a simple entity; override what differs."""

    entity: ClassVar[str] = ""
    hidden: ClassVar[frozenset[str]] = frozenset()
    """Fields that the back office keeps for itself: not part of the truth."""
    editable: ClassVar[tuple[str, ...]] = ()
    """Fields that the screen and `/_sim/edit` may set, by their clean names."""

    def key(self) -> str:
        return str(getattr(self, self.__struct_fields__[0]))

    def lane(self) -> str:
        """A group to pick random rows from, such as open and closed."""
        return ""

    def version(self) -> int:
        """What the changes-since query compares and sorts by: seconds since 1970, or the revision."""
        changed_at = getattr(self, "changed_at", None)
        if isinstance(changed_at, datetime):
            return int(changed_at.timestamp())
        return int(getattr(self, "revision", 0))

    def stamped(self, stamp: Stamp, previous: Self | None) -> Self:
        """This row as it is committed; `previous` is the row it replaces."""
        fields: dict[str, datetime | int] = {}
        if "changed_at" in self.__struct_fields__:
            fields["changed_at"] = stamp.at
        if "revision" in self.__struct_fields__:
            fields["revision"] = int(getattr(previous, "revision", 0)) + 1
        return msgspec.structs.replace(self, **fields)

    def checked(self) -> Self:
        """This row in normal form after an edit by hand. Raises ValueError when a value is impossible."""
        return self

    def truth(self) -> Row:
        """What the front office should show: clean names, decimals and times as canonical strings."""
        row = cast(Row, msgspec.to_builtins(self))
        return {name: value for name, value in row.items() if name not in self.hidden}

    def seen_by(self, viewer: Viewer) -> bool:
        """Whether the front office may show this row to `viewer`."""
        return True


class Shape(msgspec.Struct, frozen=True):
    """How the screen lets people edit one field. `type`: text, number, flag, choice or date."""

    name: str
    type: str
    nullable: bool = False
    choices: tuple[str, ...] = ()


def shapes(kind: type[Record]) -> list[Shape]:
    """The editable fields of an entity, read from its annotations."""
    known = msgspec.inspect.type_info(kind)
    assert isinstance(known, msgspec.inspect.StructType)
    return [_shape(field.name, field.type) for field in known.fields if field.name in kind.editable]


def _shape(name: str, kind: msgspec.inspect.Type) -> Shape:
    inner = list(kind.types) if isinstance(kind, msgspec.inspect.UnionType) else [kind]
    solid = [part for part in inner if not isinstance(part, msgspec.inspect.NoneType)]
    nullable = len(solid) < len(inner)
    match solid[0]:
        case msgspec.inspect.LiteralType(values=values):
            return Shape(name, "choice", nullable, tuple(str(value) for value in values))
        case msgspec.inspect.BoolType():
            return Shape(name, "flag", nullable)
        case msgspec.inspect.IntType() | msgspec.inspect.FloatType():
            return Shape(name, "number", nullable)
        case msgspec.inspect.DateType():
            return Shape(name, "date", nullable)
        case _:
            return Shape(name, "text", nullable)
