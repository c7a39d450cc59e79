"""How large a deployment has to be, and what it costs a month.  (pure)

Sizes follow from the limits of the services and from what was measured (docs/BENCHMARKS.md), costs from `tidegate.prices`.
Every number that is neither is an assumption with a name and a reason: `Assumptions`, printed with each estimate. Beside it
stands what the same stream would cost with a Lambda function as poller and one as consumer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import ceil
from typing import Annotated, Literal

from msgspec import Meta, Struct
from msgspec.structs import fields, replace

from tidegate.prices import HOURS, PRICES, PriceTable

SECONDS = HOURS * 3600
GIB = 1024**3
# Kinesis, for each shard: what may be written, and read by all that poll.
SHARD_RECORDS_S = 1_000
SHARD_WRITE_BYTES_S = 1024**2
SHARD_READ_BYTES_S = 2 * 1024**2
RECORD_BYTES_MOST = 10 * 1024**2
PUT_UNIT_BYTES = 25 * 1024


class Load(Struct, frozen=True, kw_only=True):
    """What comes in. `size` bytes of an event on the stream; `entities` kinds of rows, each with a source of its own."""

    events_s: float
    size: int = 1_000
    entities: int = 3
    rows: int = 1_000_000
    reads_s: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.events_s <= 1_000_000:
            raise ValueError("events a second: above 0, at most 1,000,000")
        if not 1 <= self.size <= RECORD_BYTES_MOST:
            raise ValueError(f"the size of an event: 1 to {RECORD_BYTES_MOST} bytes, as Kinesis takes")
        if not 1 <= self.entities <= 10_000:
            raise ValueError("entities: 1 to 10,000")
        if not 0 <= self.rows <= 1_000_000_000_000:
            raise ValueError("rows: 0 to 1,000,000,000,000")
        if not 0 <= self.reads_s <= 1_000_000:
            raise ValueError("reads a second: 0 to 1,000,000")


class Task(Struct, frozen=True):
    """What one task of a service gets."""

    vcpu: float
    memory_gb: float


class Profile(Struct, frozen=True, kw_only=True):
    """What a deployment has whatever the load: the profiles of k8s_or_ecs/ecs. `endpoints` are interface endpoints."""

    zones: int = 3
    nats: int
    endpoints: int
    workers: int = 2
    pollers: int = 2
    databases: int
    worker: Task
    poller: Task
    least_acu: float = 0.5


ProfileName = Literal["small", "large"]
PROFILES: Mapping[ProfileName, Profile] = {
    "small": Profile(nats=1, endpoints=1, databases=1, worker=Task(0.5, 1), poller=Task(0.25, 0.5)),
    "large": Profile(nats=3, endpoints=5, databases=2, worker=Task(2, 4), poller=Task(1, 2)),
}


class Assumptions(Struct, frozen=True, kw_only=True):
    """Numbers that are no limit of a service and no price."""

    peak: Annotated[
        float, Meta(description="the busiest minute, as a multiple of the mean; shards and pollers follow it")
    ] = 2.0
    worker_events_s: Annotated[
        float,
        Meta(description="events/s for each worker that scaling aims at; one does ten times as much when it must"),
    ] = 1_000.0
    poller_events_s: Annotated[
        float, Meta(description="events/s of one vCPU of a poller, translation included; not measured")
    ] = 2_500.0
    acu_events_s: Annotated[
        float, Meta(description="events/s for one ACU, a quarter of a vCPU; 15,000 on about one vCPU were measured")
    ] = 1_000.0
    acu_reads_s: Annotated[float, Meta(description="API reads/s for one ACU: by key, or one page by an index")] = 200.0
    hot_share: Annotated[float, Meta(description="share of the rows that stays in the database's memory")] = 0.2
    row_overhead: Annotated[float, Meta(description="bytes of indexes and versions for each byte of a row")] = 1.5
    io_per_event: Annotated[float, Meta(description="Aurora I/O for each event; hundreds of them share a commit")] = 0.3
    poll_s: Annotated[float, Meta(description="seconds between two polls of a source, the default of Source")] = 1.0
    page_rows: Annotated[
        float, Meta(description="rows of a page; each page is a journal in S3 and a write of the cursor")
    ] = 200.0
    renew_s: Annotated[
        float, Meta(description="seconds between two renewals of a lease (TIDEGATE_LEASES_RENEW_INTERVAL_S)")
    ] = 4.0
    reads_most_s: Annotated[
        float, Meta(description="DynamoDB read units/s of one process at most (TIDEGATE_LEASES_READS_PER_S)")
    ] = 60.0
    log_bytes_s: Annotated[float, Meta(description="bytes a second that one task logs, metrics included")] = 500.0
    other_gb: Annotated[
        float, Meta(description="GB a month through NAT beside the stream; back offices are reached by private line")
    ] = 40.0
    alarms: Annotated[int, Meta(description="alarms, about; k8s_or_ecs/observability/alarms.yaml lists them")] = 50
    metrics: Annotated[int, Meta(description="metrics of all programs together, each for its service as a whole")] = 130
    metrics_source: Annotated[int, Meta(description="further metrics for each source: those labelled with it")] = 30
    insights: Annotated[int, Meta(description="metrics of ECS' Container Insights, which alarms and scaling use")] = 60
    lambda_gb: Annotated[float, Meta(description="memory of each Lambda function; 0.5 GB come with 0.3 vCPU")] = 0.5
    lambda_call_s: Annotated[
        float, Meta(description="seconds of a consumer's call beside its rows: connection, commit, checkpoint")
    ] = 0.06
    lambda_event_s: Annotated[
        float, Meta(description="seconds of a consumer for each event: 0.1 ms on a whole vCPU")
    ] = 0.0003
    lambda_batch: Annotated[float, Meta(description="records in one call of the consumer at most")] = 500.0
    lambda_read_s: Annotated[float, Meta(description="seconds of one API read")] = 0.03


class Size(Struct, frozen=True, kw_only=True):
    """How large. `acu` is the mean, for the bill; `acu_peak` what the cluster must be allowed."""

    shards: int
    workers: int
    pollers: int
    acu: float
    acu_peak: float
    storage_gb: float
    writes_s: float
    reads_s: float


class Item(Struct, frozen=True, kw_only=True):
    """One line of the bill: so many units of `price` (a name in `PRICES`) a month, and what they cost."""

    service: str
    what: str
    price: str
    units: float
    dollars: float = 0.0


class Estimate(Struct, frozen=True, kw_only=True):
    load: Load
    profile: ProfileName
    size: Size
    items: tuple[Item, ...]
    lambda_items: tuple[Item, ...]
    assumptions: Assumptions
    prices: PriceTable

    @property
    def dollars(self) -> float:
        return sum(item.dollars for item in self.items)

    @property
    def is_tight(self) -> bool:
        """Whether a source, at its busiest, is more than one poller of this profile can do."""
        each_s = self.load.events_s * self.assumptions.peak / self.load.entities
        return each_s > self.assumptions.poller_events_s * PROFILES[self.profile].poller.vcpu

    @property
    def lambda_dollars(self) -> float:
        return sum(item.dollars for item in self.lambda_items)


def estimate(
    load: Load,
    profile: ProfileName = "small",
    assumptions: Assumptions | None = None,
    *,
    prices: PriceTable | None = None,
    endpoints: bool = True,
) -> Estimate:
    """`endpoints` False: everything goes through NAT, to see what the endpoints save."""
    given, table = assumptions or Assumptions(), prices or PriceTable()
    size = size_of(load, PROFILES[profile], given)
    shared = tuple(_shared(load, PROFILES[profile], size, given))
    return Estimate(
        load=load,
        profile=profile,
        size=size,
        items=_priced(
            table,
            *shared,
            *_tasks(load, PROFILES[profile], size, given),
            *_network(load, PROFILES[profile], given, endpoints),
        ),
        lambda_items=_priced(
            table, *shared, *_functions(load, size, given), *_lambda_network(load, PROFILES[profile], given)
        ),
        assumptions=given,
        prices=table,
    )


def _priced(table: PriceTable, *items: Item) -> tuple[Item, ...]:
    return tuple(replace(item, dollars=item.units * table.dollars[item.price]) for item in items)


# ---------------------------------------------------------------- how large


def size_of(load: Load, profile: Profile, given: Assumptions) -> Size:
    peak_s = load.events_s * given.peak
    workers = max(profile.workers, ceil(load.events_s / given.worker_events_s))
    # A source is polled by one task at a time.
    pollers = max(profile.pollers, min(ceil(peak_s / (given.poller_events_s * profile.poller.vcpu)), load.entities))
    shards = max(_shards(load, peak_s, given), workers)
    reads_acu = load.reads_s / given.acu_reads_s
    hot_acu = _table_bytes(load, given) * given.hot_share / (1.5 * GIB)
    return Size(
        shards=shards,
        workers=workers,
        pollers=pollers,
        acu=_acu(load.events_s / given.acu_events_s + reads_acu, hot_acu, profile),
        acu_peak=_acu(given.peak * (load.events_s / given.acu_events_s + reads_acu), hot_acu, profile),
        storage_gb=_table_bytes(load, given) / GIB,
        writes_s=_writes_s(load, shards, given),
        reads_s=_reads_s(shards + load.entities, workers + pollers, given),
    )


def _shards(load: Load, peak_s: float, given: Assumptions) -> int:
    """By each of Kinesis' limits; a watermark of each source goes to every shard at each poll."""
    watermarks_s = load.entities / given.poll_s
    by_records = ceil(peak_s / (SHARD_RECORDS_S - watermarks_s)) if watermarks_s < SHARD_RECORDS_S else 10_000
    by_writes = ceil(peak_s * load.size / SHARD_WRITE_BYTES_S)
    by_reads = ceil(peak_s * load.size / SHARD_READ_BYTES_S)
    return max(by_records, by_writes, by_reads, 1)


def _acu(by_work: float, by_memory: float, profile: Profile) -> float:
    """Aurora Serverless v2 grows by halves of an ACU."""
    return max(profile.least_acu, ceil(max(by_work, by_memory) * 2) / 2)


def _table_bytes(load: Load, given: Assumptions) -> float:
    return load.rows * load.size * (1 + given.row_overhead)


def _pages_s(load: Load, given: Assumptions) -> float:
    """Pages with changes a second: at most one for each poll while few rows change, then as many as they fill."""
    return max(min(load.events_s, load.entities / given.poll_s), load.events_s / given.page_rows)


def _writes_s(load: Load, shards: int, given: Assumptions) -> float:
    """Renewals of all leases, which carry the checkpoints, and cursors."""
    return (shards + load.entities) / given.renew_s + _pages_s(load, given)


def _reads_s(leases: int, processes: int, given: Assumptions) -> float:
    """Each process asks twice a second what is in its name, and looks once at what it watches: half a unit for 4 KB."""
    looked = 0.5 * ceil(leases * 300 / 4096)
    return processes * min(1.0 + looked, given.reads_most_s)


# ---------------------------------------------------------------- what it costs


def _shared(load: Load, profile: Profile, size: Size, given: Assumptions) -> Iterator[Item]:
    """What both designs need: the stream, the database, the API."""
    records_s = load.events_s + load.entities * size.shards / given.poll_s
    yield Item(service="Kinesis", what="shards", price="shard", units=size.shards * HOURS)
    yield Item(service="Kinesis", what="7 days of retention", price="retention", units=size.shards * HOURS)
    put_units = records_s * ceil(load.size / PUT_UNIT_BYTES) * SECONDS
    yield Item(service="Kinesis", what="puts, watermarks included", price="put", units=put_units)
    yield Item(service="Kinesis", what="arrivals, one shard", price="shard", units=HOURS)
    yield Item(service="Kinesis", what="arrivals, 7 days of retention", price="retention", units=HOURS)
    yield Item(service="Aurora", what="capacity", price="acu", units=size.acu * profile.databases * HOURS)
    yield Item(service="Aurora", what="storage", price="storage", units=size.storage_gb)
    yield Item(service="Aurora", what="I/O", price="io", units=load.events_s * given.io_per_event * SECONDS)
    proxied = max(8.0, size.acu_peak) * profile.databases
    yield Item(service="RDS Proxy", what="capacity", price="proxy", units=proxied * HOURS)
    yield Item(service="API", what="requests", price="api", units=load.reads_s * SECONDS)
    yield Item(service="API", what="Lambda requests", price="invocation", units=load.reads_s * SECONDS)
    busy = load.reads_s * SECONDS * given.lambda_read_s * given.lambda_gb
    yield Item(service="API", what="Lambda time", price="lambda", units=busy)
    yield Item(service="CloudWatch", what="alarms", price="alarm", units=given.alarms)
    yield Item(service="CloudWatch", what="dashboards", price="dashboard", units=5)
    # Whoever projects by functions has to see as much.
    metrics = given.metrics + given.metrics_source * load.entities + size.shards
    yield Item(service="CloudWatch", what="metrics", price="metric", units=metrics)


def _tasks(load: Load, profile: Profile, size: Size, given: Assumptions) -> Iterator[Item]:
    # One more files arrivals; it is as large as a poller.
    pollers = size.pollers + 1
    tasks = size.workers + pollers
    vcpu = size.workers * profile.worker.vcpu + pollers * profile.poller.vcpu
    memory = size.workers * profile.worker.memory_gb + pollers * profile.poller.memory_gb
    yield Item(service="Fargate", what="vCPU", price="vcpu", units=vcpu * HOURS)
    yield Item(service="Fargate", what="memory", price="memory", units=memory * HOURS)
    yield Item(service="DynamoDB", what="leases and cursors, writes", price="write", units=size.writes_s * SECONDS)
    yield Item(service="DynamoDB", what="leases, reads", price="read", units=size.reads_s * SECONDS)
    yield Item(service="S3", what="journals of the index", price="s3 put", units=_pages_s(load, given) * SECONDS)
    yield Item(service="CloudWatch", what="logs", price="logs", units=tasks * given.log_bytes_s * SECONDS / GIB)
    yield Item(service="CloudWatch", what="Container Insights", price="metric", units=given.insights)


def _network(load: Load, profile: Profile, given: Assumptions, endpoints: bool) -> Iterator[Item]:
    """Every event goes out to the stream and comes in again; S3 and DynamoDB have free gateways with the endpoints."""
    stream_gb = 2 * load.events_s * load.size * SECONDS / GIB
    yield Item(service="Network", what="NAT gateways", price="nat", units=profile.nats * HOURS)
    if endpoints:
        yield _endpoints(profile)
        yield Item(service="Network", what="through the endpoint", price="endpoint data", units=stream_gb)
    through_nat = given.other_gb if endpoints else given.other_gb + stream_gb
    yield Item(service="Network", what="through NAT", price="nat data", units=through_nat)


def _endpoints(profile: Profile) -> Item:
    return Item(
        service="Network", what="interface endpoints", price="endpoint",
        units=profile.endpoints * profile.zones * HOURS,
    )  # fmt: skip


def _functions(load: Load, size: Size, given: Assumptions) -> Iterator[Item]:
    """One poller function a source that polls all the time, as schedules start no more often than each minute.

    The consumer is called for each shard about once a second, or as often as batches fill. State of the pollers is
    kept as we do: the same writes and journals, without leases.
    """
    yield Item(
        service="Lambda", what="pollers, always on", price="lambda", units=load.entities * SECONDS * given.lambda_gb
    )
    per_shard_s = load.events_s / size.shards
    calls_s = size.shards * min(per_shard_s, max(1.0, per_shard_s / given.lambda_batch))
    busy_s = calls_s * given.lambda_call_s + load.events_s * given.lambda_event_s
    yield Item(service="Lambda", what="consumer, requests", price="invocation", units=calls_s * SECONDS)
    yield Item(service="Lambda", what="consumer, time", price="lambda", units=busy_s * given.lambda_gb * SECONDS)
    pages_s = _pages_s(load, given)
    yield Item(service="DynamoDB", what="cursors, writes", price="write", units=pages_s * SECONDS)
    yield Item(service="S3", what="journals of the index", price="s3 put", units=pages_s * SECONDS)
    yield Item(service="CloudWatch", what="logs", price="logs", units=calls_s * 300 * SECONDS / GIB)


def _lambda_network(load: Load, profile: Profile, given: Assumptions) -> Iterator[Item]:
    """Lambda itself reads the stream, outside of the VPC; only what the pollers put goes through the endpoint."""
    yield Item(service="Network", what="NAT gateways", price="nat", units=profile.nats * HOURS)
    yield _endpoints(profile)
    put_gb = load.events_s * load.size * SECONDS / GIB
    yield Item(service="Network", what="through the endpoint", price="endpoint data", units=put_gb)
    yield Item(service="Network", what="through NAT", price="nat data", units=given.other_gb)


# ---------------------------------------------------------------- for a person


def by_service(items: tuple[Item, ...]) -> dict[str, float]:
    """Dollars a month, by service, in the order of the first line of each."""
    found: dict[str, float] = {}
    for item in items:
        found[item.service] = found.get(item.service, 0.0) + item.dollars
    return found


def report(found: Estimate) -> Iterator[str]:
    load, size = found.load, found.size
    yield (
        f"{load.events_s:,.10g} events/s of {load.size:,} bytes, {load.entities} entities with {load.rows:,} rows, "
        f"{load.reads_s:,.10g} reads/s, profile {found.profile}"
    )
    yield ""
    yield f"  shards           {size.shards}"
    yield f"  tasks            {size.workers} workers, {size.pollers} pollers (never more workers than shards)"
    if found.is_tight:
        yield "                   a source shows more than one such poller can do: larger tasks, or more sources"
    yield f"  ACUs             {size.acu:g} on average, {size.acu_peak:g} at the peak, {size.storage_gb:,.1f} GiB stored"
    yield f"  DynamoDB         {size.writes_s:,.1f} write and {size.reads_s:,.1f} read units a second"
    yield ""
    ours, theirs = by_service(found.items), by_service(found.lambda_items)
    yield f"  {'$ a month':<16} {'tidegate':>10} {'Lambda poller and consumer':>28}"
    for service in dict.fromkeys([*ours, *theirs]):
        yield f"  {service:<16} {_cell(ours.get(service)):>10} {_cell(theirs.get(service)):>28}"
    yield f"  {'together':<16} {found.dollars:>10,.0f} {found.lambda_dollars:>28,.0f}"


def _cell(dollars: float | None) -> str:
    return "" if dollars is None else f"{dollars:,.0f}"


def notes(given: Assumptions, table: PriceTable) -> Iterator[str]:
    """What the figures rest on."""
    if table.changed:
        yield f"Prices of {table.region} as of {table.date}. Not the list's: {', '.join(sorted(table.changed))}."
    else:
        yield (
            f"List prices of {table.region} as of {table.date}, an assumption: no discounts, no free tier. "
            "The pages they are from:"
        )
        yield "  " + "; ".join(sorted({price.page for price in PRICES.values()}))
    yield "Put yours in their place: `tidegate estimate --list-prices > prices.toml`, change it, `--prices prices.toml`."
    yield "Not in it: data transfer to browsers, CloudFront, WAF, Cognito, KMS, secrets, support, a second environment."
    yield "The Lambda design has the same stream, database and API, and polls each second by functions that never end. It has"
    yield "no fence between a poller and its successor, and holds a connection of the database for each shard's call."
    yield "Assumed:"
    for field in fields(Assumptions):
        [meta] = field.type.__metadata__
        yield f"  {field.name:<16} {getattr(given, field.name):<8g} {meta.description}"
