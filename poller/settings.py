"""The poller's settings, read once from TIDEGATE_… variables. What a source needs comes from its bubble."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from tidegate.settings import PREFIX, AwsSettings, HealthSettings, LeaseSettings, StreamSettings


class PublishSettings(Struct, frozen=True, kw_only=True):
    """How records go to Kinesis."""

    call_bytes: Annotated[int, Meta(ge=1_100_000, le=5_000_000, description="one PutRecords; Kinesis takes 5 MiB")] = (
        4_000_000
    )
    attempts: Annotated[int, Meta(ge=1, le=100, description="tries of one call before the page waits")] = 10
    retry_s: Annotated[float, Meta(gt=0, description="first wait, at most; doubles, full jitter")] = 0.05
    retry_most_s: Annotated[
        float, Meta(gt=0, description="the most that wait becomes: a shard refills each second")
    ] = 2.0
    parallel_calls: Annotated[
        int, Meta(ge=1, le=64, description="calls under way, all sources together; memory is this times call_bytes")
    ] = 4
    shard_records_per_s: Annotated[
        float, Meta(gt=0, description="what this process may send a shard; Kinesis takes 1,000 from all of them")
    ] = 1_000.0
    shard_bytes_per_s: Annotated[
        float, Meta(ge=1_048_576, description="the same in bytes; Kinesis takes 1 MiB/s from all of them")
    ] = 1_048_576.0
    aggregate: Annotated[
        bool, Meta(description="pack events into KPL aggregates; for many small events to few shards")
    ] = False
    aggregate_bytes: Annotated[
        int, Meta(ge=1_024, le=1_000_000, description="size of an aggregate, at most; KPL's default")
    ] = 51_200
    claim_bucket: Annotated[
        str | None,
        Meta(
            extra={"env": f"{PREFIX}_CLAIM_BUCKET"},
            description="S3 bucket for events too large for the stream; unset: they are quarantined",
        ),
    ] = None
    claim_most_bytes: Annotated[
        int, Meta(ge=1_000_000, description="the largest event that is carried so; workers hold some in memory")
    ] = 16_000_000
    shards_refresh_s: Annotated[
        float, Meta(gt=0, description="age of the shard list; a reshard is noticed earlier by its effects")
    ] = 10.0


class LoopSettings(Struct, frozen=True, kw_only=True):
    """How one source is polled, beside what its declaration says."""

    back_off_s: Annotated[
        float, Meta(gt=0, description="first wait after a failure, at most; doubles, full jitter")
    ] = 0.5
    back_off_most_s: Annotated[
        float, Meta(gt=0, description="the most that wait becomes; how late a recovery is noticed")
    ] = 15.0
    walk_failures: Annotated[
        int, Meta(ge=1, description="failures in a row before a sweep starts over, as page tokens expire")
    ] = 5
    mass_deletion_rows: Annotated[
        int, Meta(ge=0, description="a sweep may always delete this many rows of a source")
    ] = 20
    mass_deletion_percent: Annotated[
        int, Meta(ge=0, le=100, description="or this share of them; above both a person must confirm")
    ] = 30
    refused_most_s: Annotated[
        float, Meta(gt=0, description="the most that wait becomes while the back office refuses us (401, 404, …)")
    ] = 300.0
    clock_ahead_most_s: Annotated[
        float, Meta(ge=0, description="how far the back office's clock may be ahead of ours and be believed")
    ] = 5.0
    sweep_kept_s: Annotated[
        float,
        Meta(gt=0, description="how often a walk's progress is kept for whoever goes on with it; writes the snapshot"),
    ] = 60.0
    journals_most: Annotated[
        int, Meta(ge=1, description="journals after the snapshot before it is written anew, sweep or no sweep")
    ] = 1000
    tombstones: Annotated[int, Meta(ge=1, le=500, description="deletions published in one step")] = 200


class DropSettings(Struct, frozen=True, kw_only=True):
    """How dropped files are read."""

    most_bytes: Annotated[
        int, Meta(ge=1, description="a larger file, as it lies in the bucket, is refused; the local disk must hold one")
    ] = 10_000_000_000
    most_unpacked_bytes: Annotated[
        int,
        Meta(ge=1, description="a file that unpacks to more is refused: no drop is, and it would be read for hours"),
    ] = 100_000_000_000
    page_rows: Annotated[
        int, Meta(ge=1, le=100_000, description="rows judged and committed together; held in memory")
    ] = 2_000
    folder: Annotated[str | None, Meta(description="where the file in hand is kept; unset: the system's own place")] = (
        None
    )


class SignalSettings(Struct, frozen=True, kw_only=True):
    """How often a source looks for what people ask, and says where it stands."""

    interval_s: Annotated[
        float, Meta(gt=0, description="between two looks: how soon a signal is heeded; one small query each")
    ] = 2.0
    state_s: Annotated[float, Meta(gt=0, description="how often an unchanged state is said again")] = 20.0


class PollerSettings(Struct, frozen=True, kw_only=True):
    """Everything `python -m poller` reads from the environment."""

    bubble: Annotated[str, Meta(description="import path of the bubble's module, e.g. examples.parcels.bubble")]
    stream: StreamSettings
    state_bucket: Annotated[str, Meta(description="S3 bucket for the key index")]
    cursor_table: Annotated[str, Meta(description="DynamoDB table of the cursors")]
    lease_table: Annotated[
        str, Meta(extra={"env": f"{PREFIX}_POLLER_LEASE_TABLE"}, description="DynamoDB table of the pollers' leases")
    ]
    allow_mass_deletion: Annotated[
        tuple[str, ...], Meta(description="sources whose mass deletion a person confirmed; unset it afterwards")
    ] = ()
    republish: Annotated[
        tuple[str, ...],
        Meta(description="sources to publish whole once more, after records were lost; unset it afterwards"),
    ] = ()
    sources: Annotated[
        tuple[str, ...], Meta(description="poll only these sources of the bubble; unset: all of them")
    ] = ()
    archive_bucket: Annotated[
        str | None,
        Meta(description="S3 bucket that keeps raw rows, for `tidegate sources retranslate`; unset: they are not kept"),
    ] = None
    source_table: Annotated[
        str, Meta(description="DynamoDB table of what is remembered and asked of each source, beside its cursor")
    ] = "tidegate-sources"
    loop: LoopSettings = LoopSettings()
    drops: DropSettings = DropSettings()
    signals: SignalSettings = SignalSettings()
    publish: PublishSettings = PublishSettings()
    leases: LeaseSettings = LeaseSettings()
    aws: AwsSettings = AwsSettings()
    health: HealthSettings = HealthSettings()
