"""The worker's settings: one frozen value, read once at the entry point."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from msgspec import Meta, Struct

from tidegate.database import DatabaseSettings
from tidegate.settings import AwsSettings, HealthSettings, LeaseSettings, Secret, StreamSettings


class ReadSettings(Struct, frozen=True, kw_only=True):
    """How shards are read."""

    mode: Annotated[
        Literal["polling", "fan_out"],
        Meta(description="GetRecords, or SubscribeToShard: 2 MiB/s of its own for each shard, at a price"),
    ] = "polling"
    consumer: Annotated[
        str | None,
        Meta(description="fan_out: name or ARN of the registered consumer; default the lease table's name, as KCL"),
    ] = None
    memory_bytes: Annotated[
        int,
        Meta(ge=1, description="payload read and not yet written, of all shards; Python needs up to thrice as much"),
    ] = 128 * 1024 * 1024
    limit_records: Annotated[int, Meta(ge=1, le=10_000, description="records asked for in one call")] = 5_000
    calls_per_s: Annotated[
        int, Meta(ge=1, le=5, description="per shard; Kinesis allows 5 for all consumers together")
    ] = 5
    bytes_per_s: Annotated[
        int, Meta(ge=1, description="per shard; Kinesis allows 2 MiB/s for all polling consumers together")
    ] = 2 * 1024 * 1024
    tip_wait_ms: Annotated[int, Meta(ge=0, description="pause between calls at the tip while records come")] = 200
    tip_wait_max_ms: Annotated[int, Meta(ge=0, description="the most that pause grows to while none come")] = 250
    attempts: Annotated[int, Meta(ge=1, le=100, description="tries of one read before the shard is given back")] = 10
    retry_max_ms: Annotated[int, Meta(ge=1, description="the most a wait between tries becomes (full jitter)")] = 5_000
    resubscribe_s: Annotated[
        float, Meta(ge=0, description="fan_out: between two subscriptions of a shard; Kinesis refuses earlier ones")
    ] = 5.0

    def __post_init__(self) -> None:
        if self.tip_wait_max_ms < self.tip_wait_ms:
            raise ValueError("TIP_WAIT_MAX_MS must not be less than TIP_WAIT_MS")


class BatchSettings(Struct, frozen=True, kw_only=True):
    """When a batch closes: at the first of these, or at once at the tip of the shard."""

    least_records: Annotated[
        int, Meta(ge=1, description="the first batch of a shard; it doubles while full ones are committed quickly")
    ] = 250
    max_records: Annotated[int, Meta(ge=1, le=100_000, description="one transaction, when the database is quick")] = (
        2_000
    )
    target_ms: Annotated[
        int,
        Meta(ge=1, description="a commit that takes longer halves the batch, a full one within half of it doubles it"),
    ] = 500
    max_bytes: Annotated[int, Meta(ge=1, description="payload of one transaction")] = 4 * 1024 * 1024
    max_age_ms: Annotated[int, Meta(ge=0, description="a batch that is not full waits this long for more")] = 100


class RejectSettings(Struct, frozen=True, kw_only=True):
    """The breaker: a bad deployment stops instead of filing everything. Rows that pollers file do not count."""

    window_s: Annotated[float, Meta(gt=0, description="how far back the share is counted")] = 60.0
    share: Annotated[float, Meta(gt=0, le=1, description="of the records delivered; more is a wrong release")] = 0.5
    minimum: Annotated[int, Meta(ge=1, description="rejections in the window before the share counts")] = 500


class ConsumerSettings(Struct, frozen=True, kw_only=True):
    """One shard's life beyond reading and batching."""

    retry_max_ms: Annotated[int, Meta(ge=1, description="the most a wait for the database becomes (full jitter)")] = (
        2_000
    )


class WatchSettings(Struct, frozen=True, kw_only=True):
    """How /readyz learns that the database went away and is back, and how often open dead letters are counted."""

    interval_s: Annotated[
        float, Meta(gt=0, description="between two looks; a worker that committed meanwhile need not ask")
    ] = 2.0
    timeout_s: Annotated[float, Meta(gt=0, description="the longest that the answer may take")] = 5.0
    letters_interval_s: Annotated[
        float, Meta(gt=0, description="between two counts of open dead letters, for the metrics; alarms wait for hours")
    ] = 60.0


class OutboxSettings(Struct, frozen=True, kw_only=True):
    """How what waits in the outbox goes to the destinations that the bubble declares."""

    concurrency: Annotated[
        int, Meta(ge=1, le=200, description="sent at once to one destination by this worker; bounds its memory")
    ] = 8
    poll_interval_ms: Annotated[
        int, Meta(ge=1, description="between two looks for what comes back; what this worker queues it sends at once")
    ] = 1_000
    claim_margin_s: Annotated[
        float, Meta(gt=0, description="beyond a destination's time-out; then a dead worker's changes are taken over")
    ] = 10.0
    retry_base_ms: Annotated[
        int, Meta(ge=1, description="the most the first wait is, of a change or a destination; doubles (full jitter)")
    ] = 1_000
    retry_most_s: Annotated[float, Meta(gt=0, description="the most a wait of one change becomes")] = 900.0
    retry_after_most_s: Annotated[
        float, Meta(gt=0, description="the most that a receiver's Retry-After is believed")
    ] = 3_600.0
    retry_for_s: Annotated[
        float, Meta(ge=0, description="a change that failed for so long is dead; 3 days outlast a weekend")
    ] = 259_200.0
    pause_after: Annotated[
        int, Meta(ge=1, description="failures in a row, then the destination is tried with one change at a time")
    ] = 5
    pause_most_s: Annotated[float, Meta(gt=0, description="the most the pause between those tries becomes")] = 60.0
    keep_s: Annotated[float, Meta(ge=0, description="what was sent is kept for questions; 7 days")] = 604_800.0
    keep_interval_s: Annotated[
        float, Meta(gt=0, description="between two looks at the age of what waits, and what can be deleted")
    ] = 15.0
    sweep_rows: Annotated[int, Meta(ge=1, le=100_000, description="deleted in one transaction")] = 1_000


class DrainSettings(Struct, frozen=True, kw_only=True):
    """Strict order: how what was parked is written once nothing holds it up."""

    interval_ms: Annotated[
        int, Meta(ge=1, description="between two looks for it; the most it waits after a person closed a letter")
    ] = 1_000
    look_interval_s: Annotated[float, Meta(gt=0, description="between two counts of what waits, for the metrics")] = (
        15.0
    )
    keys: Annotated[int, Meta(ge=1, le=10_000, description="asked for at once")] = 100
    step_letters: Annotated[int, Meta(ge=1, le=10_000, description="of one key in one transaction, one by one")] = 200
    step_bytes: Annotated[int, Meta(ge=1, description="payload of one transaction; one larger one is one step")] = (
        4 * 1024 * 1024
    )


class RetentionSettings(Struct, frozen=True, kw_only=True):
    """What is deleted when. A tombstone must outlive every event of its row that could still come."""

    stream_hours: Annotated[
        int, Meta(ge=1, description="the stream's retention at most; while it is longer, tombstones stay. 7 days")
    ] = 168
    replay_hours: Annotated[
        int, Meta(ge=0, description="how old events may be that somebody else puts on the stream again. 7 days")
    ] = 168
    tombstones_hours: Annotated[int, Meta(ge=1, description="rows that are gone; 30 days")] = 720
    letters_hours: Annotated[int, Meta(ge=1, description="dead letters after they were resolved; 30 days")] = 720
    departures_hours: Annotated[
        int, Meta(ge=2, description="who saw a row that is gone; longer than the API's TIDEGATE_CHANGES_KEPT_S, 3 days")
    ] = 72
    inbound_hours: Annotated[
        int, Meta(ge=1, description="arrivals in tidegate.inbound that nobody has fetched and deleted; 90 days")
    ] = 2_160
    interval_s: Annotated[float, Meta(gt=0, description="between two rounds; nothing waits for them")] = 600.0
    step_rows: Annotated[int, Meta(ge=1, le=100_000, description="looked at in one transaction")] = 500
    pause_ms: Annotated[int, Meta(ge=0, description="between two of them: the projection comes first")] = 100
    statement_timeout_ms: Annotated[
        int, Meta(ge=1, description="the longest that one of its statements may hold a row")
    ] = 2_000

    def __post_init__(self) -> None:
        least = self.stream_hours + self.replay_hours
        if self.tombstones_hours < least:
            raise ValueError(
                f"TOMBSTONES_HOURS is {self.tombstones_hours}, less than STREAM_HOURS and REPLAY_HOURS together, {least}: "
                "an event from before a deletion could come again after its tombstone is gone, and the deleted row with it"
            )
        if self.letters_hours < self.stream_hours:
            raise ValueError(
                f"LETTERS_HOURS is {self.letters_hours}, less than STREAM_HOURS, {self.stream_hours}: a record that is "
                "still in the stream could be read again and open a letter that was resolved"
            )


class WorkerSettings(Struct, frozen=True, kw_only=True):
    """Everything `python -m worker` can be told."""

    name: Annotated[str, Meta(description="first part of the lease owner's name")] = "worker"
    stream: StreamSettings
    bubble: Annotated[str, Meta(description="import path of the bubble, such as examples.parcels.bubble")]
    database_url: Annotated[Secret, Meta(description="postgresql://user:password@host:port/database")]
    lease_table: Annotated[str, Meta(description="DynamoDB table of the shards' leases, in KCL's format")]
    start_position: Annotated[
        Literal["TRIM_HORIZON", "LATEST", "AT_TIMESTAMP"], Meta(description="where a shard without a lease begins")
    ] = "TRIM_HORIZON"
    start_time: Annotated[
        str | None, Meta(description="for AT_TIMESTAMP: ISO 8601 with offset, such as 2026-11-21T06:00:00Z")
    ] = None
    claim_bucket: Annotated[
        str | None, Meta(description="S3 bucket of events too large for the stream: the pollers' own setting")
    ] = None
    database: DatabaseSettings = DatabaseSettings()
    read: ReadSettings = ReadSettings()
    batch: BatchSettings = BatchSettings()
    reject: RejectSettings = RejectSettings()
    consumer: ConsumerSettings = ConsumerSettings()
    watch: WatchSettings = WatchSettings()
    outbox: OutboxSettings = OutboxSettings()
    drain: DrainSettings = DrainSettings()
    retention: RetentionSettings = RetentionSettings()
    leases: LeaseSettings = LeaseSettings()
    aws: AwsSettings = AwsSettings()
    health: HealthSettings = HealthSettings()

    def __post_init__(self) -> None:
        if self.start_s is None and self.start_position == "AT_TIMESTAMP":
            raise ValueError("START_POSITION is AT_TIMESTAMP, so START_TIME must say which")

    @property
    def start_s(self) -> float | None:
        """The start time in epoch seconds. Raises ValueError when it is no time, or without an offset."""
        if self.start_time is None:
            return None
        try:
            time = datetime.fromisoformat(self.start_time)
        except ValueError as error:
            raise ValueError(f"START_TIME is no time in ISO 8601: {error}") from error
        if time.tzinfo is None:
            raise ValueError(f"START_TIME {self.start_time} leaves open which zone it means; add Z or +01:00")
        return time.timestamp()
