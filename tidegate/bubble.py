"""Bubble: the entities, sources, viewers and destinations of one deployment, named by import path.  (pure)

A bubble is a small package of the user's own. The services know it only through this module, so a new
entity or back office touches no file of theirs. Nothing here performs I/O: sources are declarations, the
poller acts on them; settings are named (`Env`) and read by the program that needs them.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any, Literal

import msgspec

from tidegate.drops import CsvDrop, Stated, check_drop
from tidegate.edge import Inbound, Scope, check_edge
from tidegate.entity import EVERYONE, Entity, EntityShape, describe
from tidegate.errors import BubbleError
from tidegate.event import Cause, Operation
from tidegate.feeds import (
    AfterKey,
    ApiKey,
    Ask,
    Basic,
    Bearer,
    ByKeyset,
    ByRevision,
    ByTime,
    ByToken,
    ClientCredentials,
    Csv,
    Env,
    Get,
    Header,
    Hours,
    LinkHeader,
    NextLink,
    Office,
    Offset,
    OnePage,
    PageNumber,
    PageToken,
    Param,
    Parent,
    RawRow,
    Reread,
    Rest,
    Rows,
)
from tidegate.fields import Fields
from tidegate.report import Report, check_reports

__all__ = [
    "AfterKey", "ApiKey", "Ask", "Basic", "Bearer", "Bubble", "ByKeyset", "ByRevision", "ByTime", "ByToken",
    "ClientCredentials", "Csv", "CsvDrop", "Destination", "Env", "Feed", "Fields", "Get", "Header", "Hours", "LinkHeader",
    "NextLink", "Office", "Offset", "OnePage", "PageNumber", "PageToken", "Param", "Parent", "RawRow", "Reread", "Rest",
    "Rows", "Source", "Stated", "Translator", "Viewer", "Webhook", "check", "load",
]  # fmt: skip

Translator = Callable[[Any], Entity]
"""Raw row in, entity out. Raises ValueError, KeyError or TypeError for a row it cannot translate. `Fields` makes one."""


Feed = Rest | CsvDrop


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """One feed of one entity.

    translate         raw row → entity; `translation` is its revision, raise it when the result changes
    poll_interval_s   pause between two polls
    poll_most_s       what that pause grows to while nothing changes; None: it does not
    poll_cron         when to poll instead of all the time: "*/5 6-22 * * mon-fri", by the clock of `zone`
    sweep_interval_s  pause between two full-key walks, which find deletions and silent updates
    sweep_cron        when to sweep instead: "30 2 * * *"
    sweep_requests_per_s  the most that a sweep asks for; None: what the back office's budget leaves
    zone              the IANA zone of the two cron expressions
    safety_s          how long a change may take from its timestamp to being visible to a poll
    overlap_s         how long it may take at worst: so much of the past is asked for again, twice in that time
    watermark         whether this source can say how fresh it is
    drift             what follows when its rows have new fields, lack some, or hold something else in one: "warn",
                      "quarantine" (rows that lack fields or hold something else) or "stop" (until a person accepts)
    objective_s       how old its rows may be before the API says that they are stale; None: nothing is promised
    """

    name: str
    entity: type[Entity]
    feed: Feed
    translate: Translator
    translation: int = 1
    poll_interval_s: float = 1.0
    poll_most_s: float | None = None
    poll_cron: str | None = None
    sweep_interval_s: float = 300.0
    sweep_cron: str | None = None
    sweep_requests_per_s: float | None = None
    zone: str = "UTC"
    safety_s: float = 2.0
    overlap_s: float = 120.0
    watermark: bool = True
    drift: Literal["warn", "quarantine", "stop"] = "warn"
    objective_s: float | None = None


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
    inbound: tuple[Inbound, ...] = ()
    scopes: tuple[Scope, ...] = ()
    reports: tuple[Report, ...] = ()

    @property
    def shapes(self) -> tuple[EntityShape, ...]:
        return tuple(describe(entity) for entity in self.entities)

    def sources_of(self, entity: str) -> tuple[Source, ...]:
        return tuple(source for source in self.sources if describe(source.entity).name == entity)

    def scopes_of(self, path: str) -> tuple[Scope, ...]:
        """What a token needs for a path of the API."""
        return tuple(scope for scope in self.scopes if f"{path}/".startswith(f"{scope.path}/"))

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
    return feed.environment


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
    check_reports(bubble.reports, bubble.entities)
    for entity in bubble.entities:
        _check_embeds(bubble, entity)
    _check_claims(bubble)
    _check_sources(bubble)
    _check_destinations(bubble)
    check_edge(bubble.inbound, bubble.scopes, {viewer.kind for viewer in bubble.viewers} | {EVERYONE})


def _check_viewers(bubble: Bubble, entity: type[Entity], shape: EntityShape) -> None:
    kinds = {viewer.kind for viewer in bubble.viewers} | {EVERYONE}
    for reader in shape.readers:
        if reader.kind not in kinds:
            raise BubbleError(
                f"{entity.__name__}: Reader({reader.kind!r}) is a kind of viewer that no token can name; "
                f"add Viewer({reader.kind!r}, claim=…) to the bubble's viewers (known: {', '.join(sorted(kinds))})"
            )


def _check_embeds(bubble: Bubble, entity: type[Entity]) -> None:
    shape = describe(entity)
    others = {other.collection: other for other in bubble.shapes}
    for embed in shape.embeds:
        name = f"{entity.__name__}: Embed({embed.name!r})"
        other = others.get(embed.collection)
        if other is None:
            raise BubbleError(f"{name}: there is no collection {embed.collection!r}; there are {', '.join(others)}")
        fields = {field.name: field for field in other.fields}
        if embed.by is not None and embed.by not in fields:
            raise BubbleError(f"{name}: {other.name} has no field {embed.by!r}; its fields are {', '.join(fields)}")
        mine, its = (
            (shape.field(embed.field), other.key) if embed.field is not None else (shape.key, fields[embed.by or ""])
        )
        if mine.kind is not its.kind:
            raise BubbleError(
                f"{name}: {shape.name}.{mine.name} is of type {mine.kind} and {other.name}.{its.name} of {its.kind}; "
                "they must be of one type"
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
        translate = source.translate
        if isinstance(translate, Fields) and translate.entity is not source.entity:
            raise BubbleError(
                f"source {source.name!r}: Fields({translate.entity.__name__}) does not make its entity; "
                f"write translate=Fields({source.entity.__name__})"
            )
        _check_numbers(source)
        if isinstance(source.feed, Rest):
            _check_rest(source.name, source.feed)
    _check_offices(bubble)


def _check_rest(name: str, feed: Rest) -> None:
    """What cannot be asked, or would be asked wrongly."""
    changes, reread = feed.changes, feed.reread
    faults = {
        "a read function pages for itself; declare its changes ByTime, ByRevision or not at all": (
            feed.read is not None and isinstance(changes, ByKeyset | ByToken)
        ),
        "children are walked parent by parent; they have no changes of their own to ask for": (
            feed.parent is not None and changes is not None
        ),
        f"its path {feed.path!r} does not say where the {{parent}} goes": (
            feed.parent is not None and "{parent}" not in feed.path
        ),
        "pages AfterKey come by key and changes do not; declare ByKeyset, or another paging": (
            isinstance(changes, ByTime | ByRevision) and isinstance(feed.paging, AfterKey)
        ),
        "Reread needs a param for its keys, or {key} in its path": (
            reread is not None and not reread.is_single and not reread.param
        ),
        "Reread's size must be at least 1": reread is not None and reread.size < 1,
    }
    for text, is_so in faults.items():
        if is_so:
            raise BubbleError(f"source {name!r}: {text}")


def _check_offices(bubble: Bubble) -> None:
    """One back office has one budget, whoever names it."""
    offices: dict[str, Office] = {}
    for source in bubble.sources:
        if not isinstance(source.feed, Rest):
            continue
        office = source.feed.manners
        known = offices.setdefault(office.name, office)
        if known != office:
            raise BubbleError(
                f"source {source.name!r}: the back office {office.name!r} is declared in two ways; "
                "make one Office(…) and name it in each of its sources"
            )
        if office.requests_per_s <= 0 or office.concurrency < 1 or office.failures < 1:
            raise BubbleError(f"back office {office.name!r}: budget, concurrency and failures must be more than 0")


def _check_numbers(source: Source) -> None:
    if isinstance(source.feed, CsvDrop):
        check_drop(source.name, source.feed)
    for field in ("poll_interval_s", "sweep_interval_s"):
        if getattr(source, field) <= 0:
            raise BubbleError(f"source {source.name!r}: {field} is {getattr(source, field)}; it must be more than 0")
    if source.objective_s is not None and (source.objective_s <= 0 or not source.watermark):
        raise BubbleError(f"source {source.name!r}: objective_s wants a number above 0 and a source with a watermark")
    for field in ("poll_most_s", "sweep_requests_per_s"):
        if (value := getattr(source, field)) is not None and value <= 0:
            raise BubbleError(f"source {source.name!r}: {field} is {value}; it must be more than 0")
    for field in ("safety_s", "overlap_s"):
        if getattr(source, field) < 0:
            raise BubbleError(f"source {source.name!r}: {field} is {getattr(source, field)}; it must not be negative")
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
