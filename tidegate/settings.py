"""Settings: environment variables in, one frozen value out, or every mistake at once.

A program has one settings class, a frozen `msgspec.Struct`, and reads it once, at its entry point:

    class WorkerSettings(Struct, frozen=True, kw_only=True):
        stream: StreamSettings
        batch_rows: Annotated[int, Meta(ge=1, le=10_000, description="rows in one statement")] = 500
        database_url: Secret

    settings = read(WorkerSettings, os.environ)     # TIDEGATE_STREAM, TIDEGATE_BATCH_ROWS, TIDEGATE_DATABASE_URL

The variable's name is TIDEGATE_ and the field's name in capitals; a field that is itself a settings class adds its
name in front of its fields' (TIDEGATE_LEASES_EXPIRY_S). `Meta(extra={"env": "TIDEGATE_STREAM"})` names another
one. Types: str, int, float, bool, Secret, Literal, tuple[str, …] (comma separated), each of them `| None`. An empty
variable counts as unset, because task definitions cannot leave one out. Units are part of the name: `_s`, `_bytes`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, MutableMapping
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import NODEFAULT, Meta, Struct
from msgspec.structs import FieldInfo, fields

from tidegate.errors import Fatal

PREFIX = "TIDEGATE"
VARIABLES = f"{PREFIX}_VARIABLES"
"""Holds further variables: see `unpack`."""

_STREAM_ARN = re.compile(r"arn:aws[a-z-]*:kinesis:[a-z0-9-]+:\d{12}:stream/[a-zA-Z0-9_.-]{1,128}")
T = TypeVar("T", bound=Struct)


class Secret:
    """A text that no log shows. `reveal()` where it is used, and nowhere else."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


class Variable(Struct, frozen=True):
    """One environment variable of a program: what `tidegate check` prints. `default` is text, "" if required."""

    name: str
    kind: str
    default: str
    required: bool
    help: str


def read(cls: type[T], environ: Mapping[str, str]) -> T:
    """Build the settings from environment variables.

    Raises Fatal that lists every missing and every wrong variable, each with what was expected.
    """
    faults: list[str] = []
    value = _read(cls, environ, PREFIX, None, faults)
    if value is None:
        raise Fatal("settings: " + "; ".join(faults))
    return value


def unpack(environ: MutableMapping[str, str]) -> None:
    """Add the variables that TIDEGATE_VARIABLES holds, one JSON object of texts; what is set already stays as it is.

    A deployment then needs one secret for all the addresses and keys of its bubble, whatever they are called. A program
    calls it once, before it reads anything else. Raises Fatal when it is no such object; its text is not shown.
    """
    text = environ.get(VARIABLES, "").strip()
    if not text:
        return
    try:
        variables = msgspec.json.decode(text, type=dict[str, str])
    except msgspec.DecodeError:
        raise Fatal(f'{VARIABLES} is not a JSON object of texts, such as {{"PARCELS_URL": "https://…"}}') from None
    for name, value in variables.items():
        environ.setdefault(name, value)


def describe(cls: type[Struct]) -> list[Variable]:
    """Every variable the settings class reads, in the order of its fields."""
    return list(_describe(cls, PREFIX, None))


def _read(
    cls: type[T], environ: Mapping[str, str], prefix: str, defaults: Struct | None, faults: list[str]
) -> T | None:
    """None when a fault was found. `defaults` is the value the outer class gives to this field, if it gives one."""
    values: dict[str, object] = {}
    before = len(faults)
    for field, declared in _fields(cls):
        name = _name(field, declared, prefix)
        default = _default(field, defaults)
        nested = _nested(declared)
        if nested is not None:
            values[field.name] = _read(nested, environ, name, _struct_or_none(default), faults)
        elif text := environ.get(name, "").strip():
            values[field.name] = _convert(name, text, declared, faults)
        elif default is NODEFAULT:
            faults.append(f"{name} is missing, expected {_kind(declared)}")
        else:
            values[field.name] = default
    if len(faults) > before:
        return None
    try:
        return cls(**values)
    except ValueError as error:
        # A class's own check of several fields together, in `__post_init__`.
        faults.append(f"{prefix}_*: {error}")
        return None


def _convert(name: str, text: str, declared: object, faults: list[str]) -> object:
    raw = [part.strip() for part in text.split(",") if part.strip()] if _is_list(declared) else text
    try:
        return msgspec.convert(raw, declared, strict=False, dec_hook=_secret)
    except msgspec.ValidationError as error:
        shown = "not usable" if _is_secret(declared) else repr(text)
        faults.append(f"{name} is {shown}, expected {_kind(declared)} ({error})")
        return None


def _secret(kind: type, raw: object) -> object:
    if kind is Secret and isinstance(raw, str):
        return Secret(raw)
    raise TypeError(f"settings cannot be of type {kind}")


def _describe(cls: type[Struct], prefix: str, defaults: Struct | None) -> Iterator[Variable]:
    for field, declared in _fields(cls):
        name = _name(field, declared, prefix)
        default = _default(field, defaults)
        nested = _nested(declared)
        if nested is not None:
            yield from _describe(nested, name, _struct_or_none(default))
        else:
            yield Variable(name, _kind(declared), _shown(default), default is NODEFAULT, _help(declared))


def _default(field: FieldInfo, defaults: Struct | None) -> object:
    """The value of a field whose variable is unset; NODEFAULT when it is required."""
    if defaults is not None:
        return getattr(defaults, field.name)
    if field.default_factory is not NODEFAULT:
        return field.default_factory()
    return field.default


def _struct_or_none(default: object) -> Struct | None:
    return default if isinstance(default, Struct) else None


def _shown(default: object) -> str:
    if default is NODEFAULT or default is None:
        return ""
    return ",".join(default) if isinstance(default, tuple) else str(default)


def _fields(cls: type[Struct]) -> Iterator[tuple[FieldInfo, Any]]:
    hints = get_type_hints(cls, include_extras=True)
    for field in fields(cls):
        yield field, hints[field.name]


def _metas(declared: Any) -> list[Meta]:
    return [each for each in getattr(declared, "__metadata__", ()) if isinstance(each, Meta)]


def _name(field: FieldInfo, declared: Any, prefix: str) -> str:
    named = [str(meta.extra["env"]) for meta in _metas(declared) if meta.extra and "env" in meta.extra]
    return named[0] if named else f"{prefix}_{field.name.upper()}"


def _help(declared: Any) -> str:
    return " ".join(meta.description for meta in _metas(declared) if meta.description)


def _bare(declared: Any) -> Any:
    """The type without its Annotated wrapper and without `| None`."""
    if get_origin(declared) is Annotated:
        return _bare(get_args(declared)[0])
    if get_origin(declared) in (Union, UnionType):
        return _bare(next(each for each in get_args(declared) if each is not type(None)))
    return declared


def _nested(declared: Any) -> type[Struct] | None:
    bare = _bare(declared)
    return bare if isinstance(bare, type) and issubclass(bare, Struct) else None


def _is_list(declared: Any) -> bool:
    return get_origin(_bare(declared)) is tuple


def _is_secret(declared: Any) -> bool:
    return _bare(declared) is Secret


_KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Secret: "a secret text"}
_BOUNDS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))


def _kind(declared: Any) -> str:
    bare = _bare(declared)
    if get_origin(bare) is Literal:
        kind = "one of " + ", ".join(map(str, get_args(bare)))
    elif _is_list(declared):
        kind = "texts separated by commas"
    else:
        kind = _KINDS.get(bare, str(bare))
    bounds = [
        f"{sign} {getattr(meta, attribute)}"
        for meta in _metas(declared)
        for attribute, sign in _BOUNDS
        if getattr(meta, attribute) is not None
    ]
    return " ".join([kind, " and ".join(bounds)]).strip()


# Settings that several programs share. A number without a reason is a guess, so each says why.


class StreamSettings(Struct, frozen=True, kw_only=True):
    """The Kinesis stream between poller and worker."""

    id: Annotated[
        str,
        Meta(
            extra={"env": f"{PREFIX}_STREAM"},
            description="name of the Kinesis stream, or its ARN, which another account's needs",
        ),
    ]

    def __post_init__(self) -> None:
        if self.id.startswith("arn:") and not _STREAM_ARN.fullmatch(self.id):
            raise ValueError("STREAM is neither a name nor arn:aws:kinesis:<region>:<account>:stream/<name>")

    @property
    def arn(self) -> str | None:
        """The ARN, if the stream was given by it."""
        return self.id if self.id.startswith("arn:") else None

    @property
    def name(self) -> str:
        """The bare name: what logs and the database call it, whichever way it was given."""
        return self.id.rpartition("/")[2]

    @property
    def target(self) -> dict[str, str]:
        """How a call of Kinesis names the stream."""
        return {"StreamARN": self.id} if self.arn else {"StreamName": self.id}


class AwsSettings(Struct, frozen=True, kw_only=True):
    """Bounds of every AWS call; where AWS is comes from the standard AWS_* variables."""

    connect_timeout_s: Annotated[
        float, Meta(gt=0, description="an endpoint in the same region answers in milliseconds")
    ] = 2.0
    read_timeout_s: Annotated[float, Meta(gt=0, description="10 MiB of GetRecords must fit")] = 10.0
    max_attempts: Annotated[int, Meta(ge=1, le=10, description="tries per call, the first included")] = 3
    pool_size: Annotated[int, Meta(ge=1, description="connections per client; about one per held shard")] = 50


class LeaseSettings(Struct, frozen=True, kw_only=True):
    """How work is shared. All processes of one fleet must agree on `expiry_s`."""

    expiry_s: Annotated[
        float, Meta(gt=0, description="a lease whose counter stood still this long is free; KCL's 10 s")
    ] = 10.0
    patience_s: Annotated[
        float, Meta(gt=0, description="a holder that could not renew this long stops; below expiry_s, or two believe")
    ] = 8.0
    renew_interval_s: Annotated[
        float,
        Meta(
            gt=0,
            description="two renewals may hang for their time-outs, and there is still time for a third before patience ends",
        ),
    ] = 4.0
    renew_retry_s: Annotated[float, Meta(gt=0, description="wait after a failed renewal, at most (full jitter)")] = 0.5
    plan_interval_s: Annotated[
        float, Meta(gt=0, description="how often I look for leases that stand still: bounds how long free ones wait")
    ] = 1.0
    survey_interval_s: Annotated[
        float,
        Meta(gt=0, description="how often the whole table is read when nothing moves; others tell a newcomer's share"),
    ] = 30.0
    own_look_s: Annotated[
        float, Meta(gt=0, description="how often I ask what is in my name: bounds the pause when a process stops")
    ] = 0.5
    reads_per_s: Annotated[
        float,
        Meta(
            gt=0, description="DynamoDB read units that looking may cost one process; a large table is read less often"
        ),
    ] = 60.0
    hand_over_s: Annotated[
        float, Meta(gt=0, description="a live owner that was asked for a lease has this long; KCL's 30 s")
    ] = 30.0
    hand_over_look_s: Annotated[
        float, Meta(gt=0, description="how often a lease that was asked for is looked at: bounds the pause in its work")
    ] = 0.25
    discover_interval_s: Annotated[float, Meta(gt=0, description="how often new shards are looked for unasked")] = 60.0
    request_timeout_s: Annotated[
        float,
        Meta(gt=0, description="one try of one lease write; two that hang must leave time for a third within patience"),
    ] = 1.0
    parallel_writes: Annotated[
        int, Meta(ge=1, description="leases taken or created at a time; well below the connections of a client")
    ] = 16
    max_leases: Annotated[int, Meta(ge=1, description="the most this process holds")] = 1000
    checkpoint_attempts: Annotated[
        int, Meta(ge=1, le=20, description="tries of one checkpoint before its task restarts")
    ] = 5
    drain_budget_s: Annotated[
        float, Meta(gt=0, description="time to finish batches on stop; ECS kills after 120 s")
    ] = 100.0
    restart_delay_s: Annotated[float, Meta(gt=0, description="wait before a failed lease is tried again; doubles")] = (
        1.0
    )
    restart_delay_max_s: Annotated[float, Meta(gt=0, description="the most that wait becomes")] = 60.0

    def __post_init__(self) -> None:
        if self.patience_s >= self.expiry_s:
            raise ValueError("PATIENCE_S must be less than EXPIRY_S, or two processes believe they hold one lease")
        if self.renew_interval_s + self.request_timeout_s > self.patience_s:
            raise ValueError("RENEW_INTERVAL_S and REQUEST_TIMEOUT_S together must not exceed PATIENCE_S")


class EmfSettings(Struct, frozen=True, kw_only=True):
    """Metrics as log lines for CloudWatch (embedded metric format); see tidegate/emf.py."""

    output: Annotated[
        Literal["off", "stdout"],
        Meta(
            extra={"env": f"{PREFIX}_EMF"},
            description="stdout: write metrics as lines that CloudWatch Logs understands",
        ),
    ] = "off"
    interval_s: Annotated[
        float,
        Meta(extra={"env": f"{PREFIX}_EMF_INTERVAL_S"}, ge=1, description="CloudWatch keeps one value a minute"),
    ] = 60.0
    namespace: Annotated[
        str, Meta(extra={"env": f"{PREFIX}_EMF_NAMESPACE"}, min_length=1, description="CloudWatch's namespace for them")
    ] = "tidegate"
    series_max: Annotated[
        int,
        Meta(
            extra={"env": f"{PREFIX}_EMF_SERIES_MAX"},
            ge=0,
            description="label sets of one metric with dimensions of their own; each is paid for as a metric",
        ),
    ] = 100
    prefixes: Annotated[
        tuple[str, ...],
        Meta(extra={"env": f"{PREFIX}_EMF_PREFIXES"}, description="metrics to write, by the beginning of their names"),
    ] = ("tidegate_", "process_")


class HealthSettings(Struct, frozen=True, kw_only=True):
    """Where /livez, /readyz and /metrics listen."""

    host: Annotated[str, Meta(description="bind address; 0.0.0.0 in a container")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535, description="0 lets the system choose")] = 8080
    stall_limit_s: Annotated[float, Meta(gt=0, description="a longer stall of the event loop counts as dead")] = 30.0
    emf: EmfSettings = EmfSettings()
