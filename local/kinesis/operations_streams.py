"""Creating, describing, resharding and deleting streams."""

from __future__ import annotations

from local.kinesis import model, tokens
from local.kinesis.catalogue import Catalogue
from local.kinesis.errors import in_use, invalid_argument, limit_exceeded, validation
from local.kinesis.model import Shard, ShardFilter
from local.kinesis.settings import ACCOUNT_ID
from local.kinesis.shapes import (
    CreateStreamInput,
    DeleteStreamInput,
    DescribeStreamInput,
    DescribeStreamOutput,
    DescribeStreamSummaryOutput,
    HashKeyRange,
    ListShardsInput,
    ListShardsOutput,
    ListStreamsInput,
    ListStreamsOutput,
    MergeShardsInput,
    Monitoring,
    RetentionInput,
    SequenceNumberRange,
    ShardFilterInput,
    ShardShape,
    SplitShardInput,
    StreamDescription,
    StreamInput,
    StreamMode,
    StreamSummary,
    UpdateShardCountInput,
    UpdateShardCountOutput,
)
from local.kinesis.stream import Stream
from local.kinesis.tokens import ShardsPage, StreamsPage

TOKEN_EXPIRY_S = 300.0
MIN_RETENTION_HOURS, MAX_RETENTION_HOURS = 24, 8760
ON_DEMAND_SHARDS = 4


def create_stream(catalogue: Catalogue, given: CreateStreamInput) -> None:
    mode = given.stream_mode_details.stream_mode if given.stream_mode_details else "PROVISIONED"
    if mode not in ("PROVISIONED", "ON_DEMAND"):
        raise validation(f"1 validation error detected: Value '{mode}' at 'streamMode' is not a stream mode")
    if mode == "PROVISIONED" and given.shard_count is None:
        raise validation("ShardCount is required for a stream of the mode PROVISIONED.")
    catalogue.create(given.stream_name, given.shard_count or ON_DEMAND_SHARDS, mode)


def delete_stream(catalogue: Catalogue, given: DeleteStreamInput) -> None:
    stream = catalogue.find(given.stream_name, given.stream_arn)
    if stream.consumers and not given.enforce_consumer_deletion:
        raise in_use(
            f"Stream {stream.name} under account {ACCOUNT_ID} has registered consumers; deregister them first "
            "or set EnforceConsumerDeletion."
        )
    catalogue.remove(stream)


def list_streams(catalogue: Catalogue, given: ListStreamsInput) -> ListStreamsOutput:
    now_ms = catalogue.clock.now_ms()
    after = given.exclusive_start_stream_name or ""
    if given.next_token is not None:
        after = tokens.read_page(given.next_token, StreamsPage, now_ms, TOKEN_EXPIRY_S).after_name
    streams = [catalogue.streams[name] for name in sorted(catalogue.streams) if name > after]
    shown = streams[: given.limit or 100]
    more = len(streams) > len(shown)
    return ListStreamsOutput(
        stream_names=[stream.name for stream in shown],
        has_more_streams=more,
        next_token=tokens.write(StreamsPage(now_ms, shown[-1].name)) if more else None,
        stream_summaries=[
            StreamSummary(
                stream_name=stream.name,
                stream_arn=stream.arn,
                stream_status=stream.status(now_ms),
                stream_mode_details=StreamMode(stream_mode=stream.mode),
                stream_creation_timestamp=stream.created_ms / 1000,
            )
            for stream in shown
        ],
    )


def describe_stream(catalogue: Catalogue, given: DescribeStreamInput) -> DescribeStreamOutput:
    stream = catalogue.find(given.stream_name, given.stream_arn)
    after = given.exclusive_start_shard_id or ""
    shards = [shard for shard in sorted(stream.shards, key=lambda shard: shard.id) if shard.id > after]
    shown = shards[: given.limit or 100]
    description = _description(stream, catalogue.clock.now_ms())
    description.shards = [_shape(shard) for shard in shown]
    description.has_more_shards = len(shards) > len(shown)
    return DescribeStreamOutput(stream_description=description)


def describe_stream_summary(catalogue: Catalogue, given: StreamInput) -> DescribeStreamSummaryOutput:
    stream = catalogue.find(given.stream_name, given.stream_arn)
    description = _description(stream, catalogue.clock.now_ms())
    description.open_shard_count = len(stream.open_shards)
    description.consumer_count = len(stream.consumers)
    return DescribeStreamSummaryOutput(stream_description_summary=description)


def _description(stream: Stream, now_ms: int) -> StreamDescription:
    return StreamDescription(
        stream_name=stream.name,
        stream_arn=stream.arn,
        stream_status=stream.status(now_ms),
        stream_mode_details=StreamMode(stream_mode=stream.mode),
        retention_period_hours=stream.retention_hours,
        stream_creation_timestamp=stream.created_ms / 1000,
        enhanced_monitoring=[Monitoring(shard_level_metrics=[])],
        encryption_type="NONE",
    )


def _shape(shard: Shard) -> ShardShape:
    parents = [*shard.parent_ids, None, None]
    return ShardShape(
        shard_id=shard.id,
        parent_shard_id=parents[0],
        adjacent_parent_shard_id=parents[1],
        hash_key_range=HashKeyRange(
            starting_hash_key=str(shard.hash_range.start), ending_hash_key=str(shard.hash_range.end)
        ),
        sequence_number_range=SequenceNumberRange(
            starting_sequence_number=shard.starting_sequence_number,
            ending_sequence_number=shard.ending_sequence_number,
        ),
    )


def list_shards(catalogue: Catalogue, given: ListShardsInput) -> ListShardsOutput:
    now_ms = catalogue.clock.now_ms()
    if given.next_token is not None:
        if given.stream_name or given.exclusive_start_shard_id or given.stream_creation_timestamp:
            raise invalid_argument("NextToken and StreamName cannot be provided together.")
        page = tokens.read_page(given.next_token, ShardsPage, now_ms, TOKEN_EXPIRY_S)
        stream = catalogue.find(page.stream_name, given.stream_arn)
        chosen, after = ShardFilter(page.filter_type, None, page.timestamp_ms), page.after_shard_id
    else:
        stream = catalogue.find(given.stream_name, given.stream_arn)
        chosen, after = _filter(given.shard_filter, now_ms), given.exclusive_start_shard_id or ""
        if chosen.type == "AFTER_SHARD_ID":
            after, chosen = max(after, chosen.shard_id or ""), ShardFilter("FROM_TRIM_HORIZON")
    shards = model.select(stream.shards, chosen, stream.horizon_ms(now_ms))
    rest = [shard for shard in shards if shard.id > after]
    shown = rest[: given.max_results or 1000]
    token = None
    if len(rest) > len(shown):
        token = tokens.write(ShardsPage(now_ms, stream.name, chosen.type, chosen.timestamp_ms, shown[-1].id))
    return ListShardsOutput(shards=[_shape(shard) for shard in shown], next_token=token)


def _filter(given: ShardFilterInput | None, now_ms: int) -> ShardFilter:
    if given is None:
        return ShardFilter("FROM_TRIM_HORIZON")
    if given.type not in model.FILTER_TYPES:
        raise validation(f"1 validation error detected: Value '{given.type}' at 'shardFilter.type' is not a filter")
    if given.type == "AFTER_SHARD_ID" and given.shard_id is None:
        raise invalid_argument("AFTER_SHARD_ID needs a ShardId.")
    if given.type not in ("AT_TIMESTAMP", "FROM_TIMESTAMP"):
        return ShardFilter(given.type, given.shard_id)
    if given.timestamp is None:
        raise invalid_argument(f"{given.type} needs a Timestamp.")
    timestamp_ms = round(given.timestamp * 1000)
    if timestamp_ms > now_ms:
        raise invalid_argument("The Timestamp of a ShardFilter cannot lie in the future.")
    return ShardFilter(given.type, None, timestamp_ms)


def split_shard(catalogue: Catalogue, given: SplitShardInput) -> None:
    stream = catalogue.find(given.stream_name, given.stream_arn)
    now_ms = catalogue.clock.now_ms()
    stream.require_active(now_ms)
    stream.split(given.shard_to_split, int(given.new_starting_hash_key), now_ms)
    stream.be_busy(now_ms)


def merge_shards(catalogue: Catalogue, given: MergeShardsInput) -> None:
    stream = catalogue.find(given.stream_name, given.stream_arn)
    now_ms = catalogue.clock.now_ms()
    stream.require_active(now_ms)
    stream.merge(given.shard_to_merge, given.adjacent_shard_to_merge, now_ms)
    stream.be_busy(now_ms)


def update_shard_count(catalogue: Catalogue, given: UpdateShardCountInput) -> UpdateShardCountOutput:
    stream = catalogue.find(given.stream_name, given.stream_arn)
    now_ms = catalogue.clock.now_ms()
    stream.require_active(now_ms)
    current, target = len(stream.open_shards), given.target_shard_count
    if given.scaling_type != "UNIFORM_SCALING":
        raise validation(f"1 validation error detected: Value '{given.scaling_type}' at 'scalingType' is not known")
    if target > 2 * current:
        raise limit_exceeded(f"UpdateShardCount cannot scale up over double your current open shard count {current}.")
    if 2 * target < current:
        raise limit_exceeded(f"UpdateShardCount cannot scale down below half your current open shard count {current}.")
    stream.rescale(target, now_ms)
    stream.be_busy(now_ms)
    return UpdateShardCountOutput(
        stream_name=stream.name, current_shard_count=current, target_shard_count=target, stream_arn=stream.arn
    )


def increase_retention(catalogue: Catalogue, given: RetentionInput) -> None:
    stream = catalogue.find(given.stream_name, given.stream_arn)
    hours = given.retention_period_hours
    if not stream.retention_hours <= hours <= MAX_RETENTION_HOURS:
        raise invalid_argument(
            f"Retention of {hours} hours: it must be at least the current {stream.retention_hours} and at most "
            f"{MAX_RETENTION_HOURS}."
        )
    stream.set_retention(hours, catalogue.clock.now_ms())


def decrease_retention(catalogue: Catalogue, given: RetentionInput) -> None:
    stream = catalogue.find(given.stream_name, given.stream_arn)
    hours = given.retention_period_hours
    if not MIN_RETENTION_HOURS <= hours <= stream.retention_hours:
        raise invalid_argument(
            f"Retention of {hours} hours: it must be at least {MIN_RETENTION_HOURS} and at most the current "
            f"{stream.retention_hours}."
        )
    stream.set_retention(hours, catalogue.clock.now_ms())
