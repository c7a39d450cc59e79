"""Putting and getting records."""

from __future__ import annotations

import binascii

import msgspec

from local.kinesis import model, tokens
from local.kinesis.catalogue import Catalogue
from local.kinesis.errors import Refused, invalid_argument, not_found, throughput_exceeded, validation
from local.kinesis.log import LINE_END, Line
from local.kinesis.model import Shard
from local.kinesis.positions import starting_position
from local.kinesis.settings import ACCOUNT_ID
from local.kinesis.shapes import (
    ChildShard,
    GetRecordsInput,
    GetShardIteratorInput,
    GetShardIteratorOutput,
    HashKeyRange,
    PutEntry,
    PutRecordInput,
    PutRecordOutput,
    PutRecordsEntryOutput,
    PutRecordsInput,
    PutRecordsOutput,
    StartingPosition,
)
from local.kinesis.stream import ShardState, Stream
from local.kinesis.tokens import ShardIterator

MAX_RECORD_BYTES = 1024 * 1024
MAX_PUT_BYTES = 10 * 1024 * 1024
MAX_GET_BYTES = 10 * 1024 * 1024
MAX_GET_RECORDS = 10_000


def put_record(catalogue: Catalogue, given: PutRecordInput) -> PutRecordOutput:
    stream = catalogue.find(given.stream_name, given.stream_arn)
    size_bytes = _size(given)
    outcome = _Put(catalogue, stream).put([(given, size_bytes)])[0]
    if outcome.error_code == "ProvisionedThroughputExceededException":
        raise throughput_exceeded(outcome.error_message or "")
    if outcome.shard_id is None or outcome.sequence_number is None:
        raise Refused("InternalFailureException", outcome.error_message or "", status=500)
    return PutRecordOutput(shard_id=outcome.shard_id, sequence_number=outcome.sequence_number)


def put_records(catalogue: Catalogue, given: PutRecordsInput) -> PutRecordsOutput:
    stream = catalogue.find(given.stream_name, given.stream_arn)
    sized = [(entry, _size(entry)) for entry in given.records]
    if sum(size for _, size in sized) > MAX_PUT_BYTES:
        raise invalid_argument(f"Records size exceeds {MAX_PUT_BYTES} bytes.")
    outcomes = _Put(catalogue, stream).put(sized)
    failed = sum(outcome.error_code is not None for outcome in outcomes)
    return PutRecordsOutput(failed_record_count=failed, records=outcomes)


def _size(entry: PutEntry) -> int:
    """Bytes of payload and key. Raises Refused when the record is too large or not base64."""
    try:
        payload = binascii.a2b_base64(entry.data, strict_mode=True)
    except (binascii.Error, ValueError):
        raise Refused("SerializationException", "Data is not base64.") from None
    size_bytes = len(payload) + len(entry.partition_key.encode())
    if size_bytes > MAX_RECORD_BYTES:
        raise validation(
            "1 validation error detected: Value at 'data' failed to satisfy constraint: "
            f"Member must have length less than or equal to {MAX_RECORD_BYTES}, partition key included"
        )
    return size_bytes


class _Put:
    """One call: every record gets its place, then each shard's records are appended by one write."""

    def __init__(self, catalogue: Catalogue, stream: Stream) -> None:
        self._stream = stream
        self._now_ms = catalogue.clock.now_ms()
        self._now_s = catalogue.clock.monotonic_s()
        self._enforced = catalogue.settings.enforce_limits
        self._lines: dict[str, list[Line]] = {}
        self._outcomes: list[PutRecordsEntryOutput] = []

    def put(self, sized: list[tuple[PutEntry, int]]) -> list[PutRecordsEntryOutput]:
        states = [self._stream.state_of_key(_hash_key(entry)) for entry, _ in sized]
        for (entry, size_bytes), state in zip(sized, states, strict=True):
            self._outcomes.append(self._place(state, entry, size_bytes))
        for name, lines in self._lines.items():
            self._append(self._stream.states[name], lines)
        return self._outcomes

    def _place(self, state: ShardState, entry: PutEntry, size_bytes: int) -> PutRecordsEntryOutput:
        shard = state.shard
        name = shard.id
        if self._enforced and not state.limits.admit_write(size_bytes, self._now_s):
            return PutRecordsEntryOutput(
                error_code="ProvisionedThroughputExceededException",
                error_message=_rate_exceeded(self._stream, state),
            )
        lines = self._lines.setdefault(name, [])
        # A wall clock that is set back must not make arrivals fall: AT_TIMESTAMP searches them in order.
        arrival_ms = lines[0].arrival_ms if lines else max(self._now_ms, state.log.last_arrival_ms)
        position = state.log.next_position + len(lines)
        sequence = model.sequence_number(shard.base, position, arrival_ms // 1000)
        key = msgspec.json.encode(entry.partition_key).decode()
        text = (
            f'{{"ApproximateArrivalTimestamp":{arrival_ms // 1000}.{arrival_ms % 1000:03d},"Data":"{entry.data}",'
            f'"PartitionKey":{key},"SequenceNumber":"{sequence}"}}'
        )
        lines.append(Line(text.encode() + LINE_END, arrival_ms, size_bytes))
        return PutRecordsEntryOutput(sequence_number=str(sequence), shard_id=name)

    def _append(self, state: ShardState, lines: list[Line]) -> None:
        try:
            state.log.append(lines)
        except OSError as error:
            for outcome in self._outcomes:
                if outcome.shard_id == state.shard.id:
                    outcome.shard_id = outcome.sequence_number = None
                    outcome.error_code, outcome.error_message = "InternalFailure", str(error)
            return
        state.wake()


def _hash_key(entry: PutEntry) -> int:
    given = entry.explicit_hash_key
    if given is None:
        return model.hash_key(entry.partition_key)
    if not (given.isascii() and given.isdigit() and len(given) <= 39 and int(given) < model.HASH_KEYS):
        raise invalid_argument(
            f"Invalid ExplicitHashKey. ExplicitHashKey must be in the range: [0, 2^128-1]. Specified value was {given}"
        )
    return int(given)


def get_shard_iterator(catalogue: Catalogue, given: GetShardIteratorInput) -> GetShardIteratorOutput:
    stream = catalogue.find(given.stream_name, given.stream_arn)
    state = stream.state(given.shard_id)
    now_ms = catalogue.clock.now_ms()
    if catalogue.settings.enforce_limits and not state.limits.admit_iterator(catalogue.clock.monotonic_s()):
        raise throughput_exceeded(_rate_exceeded(stream, state))
    start = StartingPosition(
        type=given.shard_iterator_type, sequence_number=given.starting_sequence_number, timestamp=given.timestamp
    )
    position = starting_position(stream, state, start, now_ms)
    return GetShardIteratorOutput(shard_iterator=_iterator(stream, state, position, now_ms))


def get_records(catalogue: Catalogue, given: GetRecordsInput) -> bytes:
    """The answer is put together from bytes: the lines of the log are the records of the answer."""
    now_ms, now_s = catalogue.clock.now_ms(), catalogue.clock.monotonic_s()
    iterator = tokens.read_iterator(given.shard_iterator, now_ms, catalogue.settings.iterator_expiry_s)
    stream = catalogue.find(iterator.stream_name, given.stream_arn)
    if stream.created_ms != iterator.created_ms:
        raise not_found(f"The stream {stream.name} that this iterator belongs to is deleted.")
    state = stream.state(iterator.shard_id)
    enforced = catalogue.settings.enforce_limits
    if enforced and not state.limits.admit_read(now_s):
        raise throughput_exceeded(_rate_exceeded(stream, state))
    run = state.log.read(iterator.position, given.limit or MAX_GET_RECORDS, MAX_GET_BYTES)
    if enforced:
        state.limits.charge_read(run.size_bytes, now_s)
    behind_ms = state.millis_behind(run.next_position, now_ms)
    if state.shard.end_position is not None and run.next_position >= state.shard.end_position:
        rest = b'"ChildShards":' + msgspec.json.encode(child_shards(stream, state.shard))
    else:
        rest = b'"NextShardIterator":"' + _iterator(stream, state, run.next_position, now_ms).encode() + b'"'
    return b'{"Records":[%b],"MillisBehindLatest":%d,%b}' % (run.records, behind_ms, rest)


def child_shards(stream: Stream, shard: Shard) -> list[ChildShard]:
    return [
        ChildShard(
            shard_id=child.id,
            parent_shards=list(child.parent_ids),
            hash_key_range=HashKeyRange(
                starting_hash_key=str(child.hash_range.start), ending_hash_key=str(child.hash_range.end)
            ),
        )
        for child in stream.children(shard)
    ]


def _iterator(stream: Stream, state: ShardState, position: int, now_ms: int) -> str:
    return tokens.write(
        ShardIterator(
            issued_ms=now_ms,
            stream_name=stream.name,
            created_ms=stream.created_ms,
            shard_id=state.shard.id,
            position=position,
        )
    )


def _rate_exceeded(stream: Stream, state: ShardState) -> str:
    return f"Rate exceeded for shard {state.shard.id} in stream {stream.name} under account {ACCOUNT_ID}."
