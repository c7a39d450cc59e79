"""Inputs and outputs of the operations, as the service's model has them. Times on the wire are seconds (float)."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct, field

StreamName = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[a-zA-Z0-9_.-]+$")]
ShardCount = Annotated[int, Meta(ge=1, le=10_000)]
PageSize = Annotated[int, Meta(ge=1, le=10_000)]


class Shape(Struct, rename="pascal", omit_defaults=True, kw_only=True):
    """Fields are named in PascalCase on the wire; what is None is left out."""


class StreamInput(Shape, kw_only=True):
    """Any call about one stream; either field names it."""

    stream_name: StreamName | None = None
    stream_arn: str | None = field(name="StreamARN", default=None)


class StreamMode(Shape, kw_only=True):
    stream_mode: str


class CreateStreamInput(Shape, kw_only=True):
    stream_name: StreamName
    shard_count: ShardCount | None = None
    stream_mode_details: StreamMode | None = None


class DeleteStreamInput(StreamInput, kw_only=True):
    enforce_consumer_deletion: bool | None = None


class DescribeStreamInput(StreamInput, kw_only=True):
    limit: PageSize | None = None
    exclusive_start_shard_id: str | None = None


class ListStreamsInput(Shape, kw_only=True):
    limit: PageSize | None = None
    exclusive_start_stream_name: str | None = None
    next_token: str | None = None


class RetentionInput(StreamInput, kw_only=True):
    retention_period_hours: int


class ShardFilterInput(Shape, kw_only=True):
    type: str
    shard_id: str | None = None
    timestamp: float | None = None


class ListShardsInput(StreamInput, kw_only=True):
    next_token: str | None = None
    exclusive_start_shard_id: str | None = None
    max_results: PageSize | None = None
    stream_creation_timestamp: float | None = None
    shard_filter: ShardFilterInput | None = None


class SplitShardInput(StreamInput, kw_only=True):
    shard_to_split: str
    new_starting_hash_key: Annotated[str, Meta(pattern=r"^(0|[1-9]\d{0,38})$")]


class MergeShardsInput(StreamInput, kw_only=True):
    shard_to_merge: str
    adjacent_shard_to_merge: str


class UpdateShardCountInput(StreamInput, kw_only=True):
    target_shard_count: ShardCount
    scaling_type: str


class PutEntry(Shape, kw_only=True):
    """`data` stays in base64: it is stored and answered as it came."""

    data: str
    partition_key: Annotated[str, Meta(min_length=1, max_length=256)]
    explicit_hash_key: str | None = None


class PutRecordInput(PutEntry, kw_only=True):
    stream_name: StreamName | None = None
    stream_arn: str | None = field(name="StreamARN", default=None)
    sequence_number_for_ordering: str | None = None


class PutRecordsInput(StreamInput, kw_only=True):
    records: Annotated[list[PutEntry], Meta(min_length=1, max_length=500)]


class GetShardIteratorInput(StreamInput, kw_only=True):
    shard_id: str
    shard_iterator_type: str
    starting_sequence_number: str | None = None
    timestamp: float | None = None


class GetRecordsInput(Shape, kw_only=True):
    shard_iterator: str
    limit: PageSize | None = None
    stream_arn: str | None = field(name="StreamARN", default=None)


class RegisterConsumerInput(Shape, kw_only=True):
    stream_arn: str = field(name="StreamARN")
    consumer_name: StreamName


class ConsumerInput(Shape, kw_only=True):
    stream_arn: str | None = field(name="StreamARN", default=None)
    consumer_name: str | None = None
    consumer_arn: str | None = field(name="ConsumerARN", default=None)


class ListConsumersInput(Shape, kw_only=True):
    stream_arn: str = field(name="StreamARN")
    next_token: str | None = None
    max_results: PageSize | None = None


class StartingPosition(Shape, kw_only=True):
    type: str
    sequence_number: str | None = None
    timestamp: float | None = None


class SubscribeInput(Shape, kw_only=True):
    consumer_arn: str = field(name="ConsumerARN")
    shard_id: str
    starting_position: StartingPosition


class HashKeyRange(Shape, kw_only=True):
    starting_hash_key: str
    ending_hash_key: str


class SequenceNumberRange(Shape, kw_only=True):
    starting_sequence_number: str
    ending_sequence_number: str | None = None


class ShardShape(Shape, kw_only=True):
    shard_id: str
    parent_shard_id: str | None = None
    adjacent_parent_shard_id: str | None = None
    hash_key_range: HashKeyRange
    sequence_number_range: SequenceNumberRange


class ChildShard(Shape, kw_only=True):
    shard_id: str
    parent_shards: list[str]
    hash_key_range: HashKeyRange


class ListShardsOutput(Shape, kw_only=True):
    shards: list[ShardShape]
    next_token: str | None = None


class Monitoring(Shape, kw_only=True):
    shard_level_metrics: list[str]


class StreamDescription(Shape, kw_only=True):
    """Both descriptions at once: `shards` belongs to one, `open_shard_count` and `consumer_count` to the other."""

    stream_name: str
    stream_arn: str = field(name="StreamARN")
    stream_status: str
    stream_mode_details: StreamMode
    retention_period_hours: int
    stream_creation_timestamp: float
    enhanced_monitoring: list[Monitoring]
    encryption_type: str
    shards: list[ShardShape] | None = None
    has_more_shards: bool | None = None
    open_shard_count: int | None = None
    consumer_count: int | None = None


class DescribeStreamOutput(Shape, kw_only=True):
    stream_description: StreamDescription


class DescribeStreamSummaryOutput(Shape, kw_only=True):
    stream_description_summary: StreamDescription


class StreamSummary(Shape, kw_only=True):
    stream_name: str
    stream_arn: str = field(name="StreamARN")
    stream_status: str
    stream_mode_details: StreamMode
    stream_creation_timestamp: float


class ListStreamsOutput(Shape, kw_only=True):
    stream_names: list[str]
    has_more_streams: bool
    next_token: str | None = None
    stream_summaries: list[StreamSummary]


class UpdateShardCountOutput(Shape, kw_only=True):
    stream_name: str
    current_shard_count: int
    target_shard_count: int
    stream_arn: str = field(name="StreamARN")


class PutRecordOutput(Shape, kw_only=True):
    shard_id: str
    sequence_number: str


class PutRecordsEntryOutput(Shape, kw_only=True):
    sequence_number: str | None = None
    shard_id: str | None = None
    error_code: str | None = None
    error_message: str | None = None


class PutRecordsOutput(Shape, kw_only=True):
    failed_record_count: int
    records: list[PutRecordsEntryOutput]


class GetShardIteratorOutput(Shape, kw_only=True):
    shard_iterator: str


class Consumer(Shape, kw_only=True):
    consumer_name: str
    consumer_arn: str = field(name="ConsumerARN")
    consumer_status: str
    consumer_creation_timestamp: float
    stream_arn: str | None = field(name="StreamARN", default=None)


class RegisterConsumerOutput(Shape, kw_only=True):
    consumer: Consumer


class DescribeConsumerOutput(Shape, kw_only=True):
    consumer_description: Consumer


class ListConsumersOutput(Shape, kw_only=True):
    consumers: list[Consumer]
    next_token: str | None = None
