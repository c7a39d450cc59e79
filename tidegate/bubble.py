"""Bubble: the entities, sources, viewers and destinations of one deployment, named by import path.  (pure)

A bubble is a small package of the user's own. The services know it only through this module, so a new
entity or back office touches no file of theirs. Nothing here performs I/O: sources are declarations, the
poller acts on them; settings are named (`Env`) and read by the program that needs them.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from tidegate.entity import EVERYONE, Entity, EntityShape, describe
from tidegate.errors import BubbleError
from tidegate.event import Cause, Operation

RawRow = Mapping[str, Any]
"""One row as the back office gave it: column name → JSON value (text for CSV)."""

Translator = Callable[[Any], Entity]
"""Raw row in, entity out. Raises ValueError, KeyError or TypeError for a row it cannot translate."""


class Env(msgspec.Struct, frozen=True):
    """A value that the program reads from the environment when it starts. Secrets are never shown."""

    name: str
    secret: bool = False
    default: str | None = None


class Header(msgspec.Struct, frozen=True):
    """A request header; `Header("Authorization", Env("KEY", secret=True), prefix="ApiKey ")`."""

    name: str
    value: Env
    prefix: str = ""


class PageNumber(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Pages 1, 2, 3…; `pages` is where the answer says how many there are, `total` how many rows."""

    param: str
    pages: str
    total: str | None = None
    size_param: str | None = None
    size: int = 200


class Offset(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Rows from an offset; `next` is where the answer names the next offset, null at the end."""

    param: str
    next: str
    total: str | None = None
    size_param: str | None = None
    size: int = 200


class PageToken(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An opaque token; `next` is where the answer names the next one, null at the end."""

    param: str
    next: str
    size_param: str | None = None
    size: int = 200


Paging = PageNumber | Offset | PageToken


class ByTime(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Changes since a modification time: rows come ordered by `column`, from `param` on (inclusive).

    format  strptime/strftime text of the times, or "iso"
    zone    the IANA zone of times without an offset
    """

    param: str
    column: str
    format: str = "iso"
    zone: str = "UTC"


class ByRevision(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Changes since a revision: an integer `column` that rises with every change of any row, exclusive."""

    param: str
    column: str


class Reread(msgspec.Struct, frozen=True, kw_only=True):
    """Ask for rows by key: the judge of deletions. Keys repeat `param`, or are joined by `separator`."""

    path: str
    param: str
    size: int = 50
    separator: str | None = None


class Rest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An HTTP back office.

    path      where the rows are listed; without the incremental parameter it lists all of them, by key
    rows      dotted path of the rows in the answer; rows that are arrays get their names from `columns`
    key       dotted path of the key in a raw row
    changes   how to ask for changes only; None: every poll is a full walk
    reread    how to ask for rows by key; None: absence from a second full walk decides a deletion
    """

    url: Env
    path: str
    rows: str
    key: str
    paging: Paging
    columns: str | None = None
    changes: ByTime | ByRevision | None = None
    reread: Reread | None = None
    headers: tuple[Header, ...] = ()
    timeout_s: float = 10.0
    requests_per_s: float = 20.0


class CsvDrop(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Full extracts that a business unit drops under an S3 prefix; the newest file is the whole truth.

    The files' names sort by their date. A row missing from a newer file is deleted.
    """

    bucket: Env
    prefix: str
    key: str
    encoding: str = "utf-8"
    delimiter: str = ","
    quote: str = '"'


Feed = Rest | CsvDrop


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """One feed of one entity.

    translate         raw row → entity; `translation` is its revision, raise it when the result changes
    poll_interval_s   pause between two polls of a quiet back office
    sweep_interval_s  pause between two full-key walks, which find deletions and silent updates
    safety_s          how long a change may take from its timestamp to being visible to a poll
    watermark         whether this source can say how fresh it is
    """

    name: str
    entity: type[Entity]
    feed: Feed
    translate: Translator
    translation: int = 1
    poll_interval_s: float = 1.0
    sweep_interval_s: float = 300.0
    safety_s: float = 2.0
    watermark: bool = True


class Viewer(msgspec.Struct, frozen=True):
    """How a token names a viewer: a value of `claim` that starts with `prefix` is an id of `kind` after it.

    many  the claim is a list (cognito:groups) or a space-separated text (scope). Say so only of a claim that
          administrators write: a text that callers choose, such as a username, is one value, spaces and all
    """

    kind: str
    claim: str
    prefix: str = ""
    many: bool = False


class Webhook(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An HTTP receiver that is told of changes: one signed POST for each, whose body is the CloudEvent.

    name        labels its changes while they wait; a renamed webhook is another one, to which none of them go
    url         where to POST
    secrets     base64 of 24 to 64 random bytes, `whsec_` in front or not. Each that is set signs, so that a second one,
                `Env("…", secret=True, default="")`, can be set while the receiver changes over
    entities    whose changes it wants; none named means every entity's
    operations  upserts, deletions or both
    causes      why an event was published; live changes only, unless said otherwise: a backfill tells of every row
    timeout_s   for one POST, from connecting to the answer
    """

    name: str
    url: Env
    secrets: tuple[Env, ...]
    entities: tuple[type[Entity], ...] = ()
    operations: tuple[Operation, ...] = (Operation.UPSERT, Operation.DELETE)
    causes: tuple[Cause, ...] = (Cause.LIVE,)
    timeout_s: float = 10.0

    @property
    def environment(self) -> tuple[Env, ...]:
        return (self.url, *self.secrets)


Destination = Webhook
"""Where changes can go. Another kind joins it here, as an adapter of `worker.ports.Destination`, and in `worker.app`."""


class Bubble(msgspec.Struct, frozen=True, kw_only=True):
    """One deployment. `name` prefixes nothing by itself; it labels logs and documents."""

    name: str
    entities: tuple[type[Entity], ...]
    sources: tuple[Source, ...]
    viewers: tuple[Viewer, ...] = ()
    destinations: tuple[Destination, ...] = ()

    @property
    def shapes(self) -> tuple[EntityShape, ...]:
        return tuple(describe(entity) for entity in self.entities)

    def sources_of(self, entity: str) -> tuple[Source, ...]:
        return tuple(source for source in self.sources if describe(source.entity).name == entity)

    @property
    def environment(self) -> tuple[Env, ...]:
        """Every variable that the sources and destinations need, each once, in the order of declaration."""
        found: dict[str, Env] = {}
        for source in self.sources:
            for env in _feed_environment(source.feed):
                found.setdefault(env.name, env)
        for destination in self.destinations:
            for env in destination.environment:
                found.setdefault(env.name, env)
        return tuple(found.values())


def _feed_environment(feed: Feed) -> tuple[Env, ...]:
    if isinstance(feed, CsvDrop):
        return (feed.bucket,)
    return (feed.url, *(header.value for header in feed.headers))


def load(path: str) -> Bubble:
    """Import `package.module` and return its checked `bubble`.

    Raises:
        BubbleError: the module cannot be found or imported, holds no `bubble`, or the bubble is wrong.
    """
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise BubbleError(f"bubble {path}: importing it failed: {error}; install what it needs") from error
        raise BubbleError(
            f"bubble {path}: there is no module {error.name!r}; run from the folder that holds the package, or install it"
        ) from error
    bubble = getattr(module, "bubble", None)
    if not isinstance(bubble, Bubble):
        raise BubbleError(f"{path}: it has no `bubble = Bubble(…)` at its top level")
    check(bubble)
    return bubble


def check(bubble: Bubble) -> None:
    """Refuse a wrong bubble at start.

    Raises:
        BubbleError: names the class or source, the field and the remedy.
    """
    tables: dict[str, str] = {}
    names: dict[str, str] = {}
    for entity in bubble.entities:
        shape = describe(entity)
        if shape.table in tables:
            raise BubbleError(
                f"{entity.__name__}: its collection {shape.collection!r} makes the table {shape.table!r}, "
                f"which {tables[shape.table]} has already; give one of them another meta.collection"
            )
        if shape.name in names:
            raise BubbleError(f"{entity.__name__}: two entities are called {shape.name!r}; rename one class")
        tables[shape.table] = names[shape.name] = entity.__name__
        _check_viewers(bubble, entity, shape)
    _check_claims(bubble)
    _check_sources(bubble)
    _check_destinations(bubble)


def _check_viewers(bubble: Bubble, entity: type[Entity], shape: EntityShape) -> None:
    kinds = {viewer.kind for viewer in bubble.viewers} | {EVERYONE}
    for reader in shape.readers:
        if reader.kind not in kinds:
            raise BubbleError(
                f"{entity.__name__}: Reader({reader.kind!r}) is a kind of viewer that no token can name; "
                f"add Viewer({reader.kind!r}, claim=…) to the bubble's viewers (known: {', '.join(sorted(kinds))})"
            )


_LISTS = frozenset({"cognito:groups", "scope"})
_NAMES = frozenset(
    {"username", "cognito:username", "preferred_username", "nickname", "name", "email", "sub", "client_id"}
)
"""Claims of which everybody knows whether they are one value."""


def _check_claims(bubble: Bubble) -> None:
    for viewer in bubble.viewers:
        if viewer.claim in _LISTS and not viewer.many:
            raise BubbleError(
                f"Viewer({viewer.kind!r}): the claim {viewer.claim!r} holds several values and would be compared as one; "
                "add many=True"
            )
        if viewer.claim in _NAMES and viewer.many:
            raise BubbleError(
                f"Viewer({viewer.kind!r}): the claim {viewer.claim!r} holds one value, and whoever chooses it could "
                "spell somebody else's among others; remove many=True"
            )


def _check_sources(bubble: Bubble) -> None:
    fed: dict[type[Entity], str] = {}
    names: set[str] = set()
    for source in bubble.sources:
        if source.name in names:
            raise BubbleError(f"source {source.name!r}: the name is taken twice; every source needs its own")
        names.add(source.name)
        if source.entity not in bubble.entities:
            raise BubbleError(
                f"source {source.name!r}: its entity {source.entity.__name__} is not among the bubble's entities; add it"
            )
        if source.entity in fed:
            raise BubbleError(
                f"source {source.name!r}: {source.entity.__name__} is fed by {fed[source.entity]!r} already, and an entity "
                "has one version domain; split it into two entities, one for each source"
            )
        fed[source.entity] = source.name
        _check_numbers(source)


def _check_numbers(source: Source) -> None:
    for field in ("poll_interval_s", "sweep_interval_s"):
        if getattr(source, field) <= 0:
            raise BubbleError(f"source {source.name!r}: {field} is {getattr(source, field)}; it must be more than 0")
    if source.safety_s < 0:
        raise BubbleError(f"source {source.name!r}: safety_s is {source.safety_s}; it must not be negative")
    if source.translation < 1:
        raise BubbleError(f"source {source.name!r}: translation is {source.translation}; it starts at 1")


_DESTINATION = re.compile(r"[a-z][a-z0-9_-]{0,57}")


def _check_destinations(bubble: Bubble) -> None:
    names: set[str] = set()
    for destination in bubble.destinations:
        name = f"destination {destination.name!r}"
        if not _DESTINATION.fullmatch(destination.name):
            raise BubbleError(f"{name}: name it in lower-case letters, digits, dashes and underscores")
        if destination.name in names:
            raise BubbleError(f"{name}: the name is taken twice; every destination needs its own")
        names.add(destination.name)
        for entity in destination.entities:
            if entity not in bubble.entities:
                raise BubbleError(f"{name}: {entity.__name__} is not among the bubble's entities; add it")
        if not destination.operations or not destination.causes:
            raise BubbleError(f"{name}: without operations or causes it would never be told of anything; name some")
        if not destination.secrets or not all(secret.secret for secret in destination.secrets):
            raise BubbleError(f'{name}: it needs secrets, each an Env("…", secret=True); what it sends is signed')
        if destination.timeout_s <= 0:
            raise BubbleError(f"{name}: timeout_s is {destination.timeout_s}; it must be more than 0")
