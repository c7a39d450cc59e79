"""The worker's settings: one frozen value, read once at the entry point."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from tidegate.database import DatabaseSettings
from tidegate.settings import AwsSettings, HealthSettings, LeaseSettings, Secret, StreamSettings


class ReadSettings(Struct, frozen=True, kw_only=True):
    """How a shard is read by GetRecords."""

    limit_records: Annotated[int, Meta(ge=1, le=10_000, description="records asked for in one call")] = 5_000
    calls_per_s: Annotated[
        int, Meta(ge=1, le=5, description="per shard; Kinesis allows 5 for all consumers together")
    ] = 5
    tip_wait_ms: Annotated[int, Meta(ge=0, description="pause between calls at the tip while records come")] = 200
    tip_wait_max_ms: Annotated[int, Meta(ge=0, description="the most that pause grows to while none come")] = 250
    attempts: Annotated[int, Meta(ge=1, le=100, description="tries of one read before the shard is given back")] = 10
    retry_max_ms: Annotated[int, Meta(ge=1, description="the most a wait between tries becomes (full jitter)")] = 5_000

    def __post_init__(self) -> None:
        if self.tip_wait_max_ms < self.tip_wait_ms:
            raise ValueError("TIP_WAIT_MAX_MS must not be less than TIP_WAIT_MS")


class BatchSettings(Struct, frozen=True, kw_only=True):
    """When a batch closes: at the first of these, or at once at the tip of the shard."""

    max_records: Annotated[int, Meta(ge=1, le=100_000, description="one transaction")] = 2_000
    max_bytes: Annotated[int, Meta(ge=1, description="payload of one transaction")] = 4 * 1024 * 1024
    max_age_ms: Annotated[int, Meta(ge=0, description="a batch that is not full waits this long for more")] = 100


class RejectSettings(Struct, frozen=True, kw_only=True):
    """The breaker: a bad deployment stops instead of filing everything. Rows that pollers file do not count."""

    window_s: Annotated[float, Meta(gt=0, description="how far back the share is counted")] = 60.0
    share: Annotated[float, Meta(gt=0, le=1, description="of the records delivered; more is a wrong release")] = 0.5
    minimum: Annotated[int, Meta(ge=1, description="rejections in the window before the share counts")] = 500


class ConsumerSettings(Struct, frozen=True, kw_only=True):
    """One shard's life beyond reading and batching."""

    checkpoint_interval_ms: Annotated[
        int, Meta(ge=0, description="between two lease writes; a crash replays as much")
    ] = 1_000
    retry_max_ms: Annotated[int, Meta(ge=1, description="the most a wait for the database becomes (full jitter)")] = (
        2_000
    )


class WorkerSettings(Struct, frozen=True, kw_only=True):
    """Everything `python -m worker` can be told."""

    name: Annotated[str, Meta(description="first part of the lease owner's name")] = "worker"
    stream: StreamSettings
    bubble: Annotated[str, Meta(description="import path of the bubble, such as examples.parcels.bubble")]
    database_url: Annotated[Secret, Meta(description="postgresql://user:password@host:port/database")]
    lease_table: Annotated[str, Meta(description="DynamoDB table of the shards' leases, in KCL's format")]
    start_position: Annotated[
        Literal["TRIM_HORIZON", "LATEST"], Meta(description="where a shard without a lease begins")
    ] = "TRIM_HORIZON"
    database: DatabaseSettings = DatabaseSettings()
    read: ReadSettings = ReadSettings()
    batch: BatchSettings = BatchSettings()
    reject: RejectSettings = RejectSettings()
    consumer: ConsumerSettings = ConsumerSettings()
    leases: LeaseSettings = LeaseSettings()
    aws: AwsSettings = AwsSettings()
    health: HealthSettings = HealthSettings()
