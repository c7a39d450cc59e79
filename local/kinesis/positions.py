"""Where to begin in a shard: the five kinds of starting position, for iterators and for subscriptions."""

from __future__ import annotations

import math

from local.kinesis.errors import invalid_argument
from local.kinesis.settings import ACCOUNT_ID
from local.kinesis.shapes import StartingPosition
from local.kinesis.stream import ShardState, Stream


def starting_position(stream: Stream, state: ShardState, start: StartingPosition, now_ms: int) -> int:
    """The position in the log at which reading begins. Raises Refused (InvalidArgumentException)."""
    match start.type:
        case "TRIM_HORIZON":
            return state.log.first_position
        case "LATEST":
            return state.log.next_position
        case "AT_SEQUENCE_NUMBER" | "AFTER_SEQUENCE_NUMBER":
            return _at_sequence(stream, state, start.type, start.sequence_number)
        case "AT_TIMESTAMP":
            return _at_timestamp(state, start.timestamp, now_ms)
        case _:
            raise invalid_argument(f"{start.type} is not a type of shard iterator.")


def _at_sequence(stream: Stream, state: ShardState, kind: str, sequence: str | None) -> int:
    if sequence is None:
        raise invalid_argument(f"Must either specify (1) {kind} and StartingSequenceNumber or (2) another type.")
    try:
        return state.position_of(sequence, after=kind == "AFTER_SEQUENCE_NUMBER")
    except ValueError as error:
        raise invalid_argument(
            f"StartingSequenceNumber {sequence} used on shard {state.shard.id} in stream {stream.name} under account "
            f"{ACCOUNT_ID} is invalid because {error}."
        ) from None


def _at_timestamp(state: ShardState, timestamp_s: float | None, now_ms: int) -> int:
    if timestamp_s is None:
        raise invalid_argument("Must specify timestampInMillis parameter for iterator of type AT_TIMESTAMP.")
    # Records have whole milliseconds; one that arrived within the named millisecond is not before it.
    timestamp_ms = math.floor(timestamp_s * 1000 + 1e-3)
    if timestamp_ms > now_ms:
        raise invalid_argument(
            f"The timestampInMillis parameter cannot be greater than the currentTimestampInMillis. "
            f"timestampInMillis: {timestamp_ms}, currentTimestampInMillis: {now_ms}"
        )
    return state.log.position_at(timestamp_ms)
