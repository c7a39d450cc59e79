"""Registered consumers of enhanced fan-out."""

from __future__ import annotations

import re

from local.kinesis import tokens
from local.kinesis.catalogue import Catalogue
from local.kinesis.errors import invalid_argument, not_found
from local.kinesis.manifest import ConsumerRow
from local.kinesis.operations_streams import TOKEN_EXPIRY_S
from local.kinesis.settings import ACCOUNT_ID
from local.kinesis.shapes import (
    Consumer,
    ConsumerInput,
    DescribeConsumerOutput,
    ListConsumersInput,
    ListConsumersOutput,
    RegisterConsumerInput,
    RegisterConsumerOutput,
)
from local.kinesis.stream import Stream
from local.kinesis.tokens import ConsumersPage

_CONSUMER_ARN = re.compile(r"(arn:aws[^/]*:stream/[a-zA-Z0-9_.-]+)/consumer/([a-zA-Z0-9_.-]+):(\d+)")


def find_consumer(catalogue: Catalogue, arn: str) -> tuple[Stream, ConsumerRow]:
    """The consumer of an ARN. Raises Refused; a deleted consumer's ARN does not fit one registered again."""
    match = _CONSUMER_ARN.fullmatch(arn)
    if match is None:
        raise invalid_argument(f"{arn} is not the ARN of a consumer.")
    stream = catalogue.find(None, match[1])
    row = stream.consumers.get(match[2])
    if row is None or row.created_ms // 1000 != int(match[3]):
        raise not_found(f"Consumer {arn} not found.")
    return stream, row


def _named(catalogue: Catalogue, given: ConsumerInput) -> tuple[Stream, ConsumerRow]:
    if given.consumer_arn is not None:
        return find_consumer(catalogue, given.consumer_arn)
    if given.stream_arn is None or given.consumer_name is None:
        raise invalid_argument("Either ConsumerARN or both StreamARN and ConsumerName must be given.")
    stream = catalogue.find(None, given.stream_arn)
    row = stream.consumers.get(given.consumer_name)
    if row is None:
        raise not_found(f"Consumer {given.consumer_name} of stream {stream.name} under account {ACCOUNT_ID} not found.")
    return stream, row


def _shape(catalogue: Catalogue, stream: Stream, row: ConsumerRow) -> Consumer:
    age_ms = catalogue.clock.now_ms() - row.created_ms
    return Consumer(
        consumer_name=row.name,
        consumer_arn=f"{stream.arn}/consumer/{row.name}:{row.created_ms // 1000}",
        consumer_status="ACTIVE" if age_ms >= catalogue.settings.transition_s * 1000 else "CREATING",
        consumer_creation_timestamp=row.created_ms / 1000,
    )


def register_consumer(catalogue: Catalogue, given: RegisterConsumerInput) -> RegisterConsumerOutput:
    stream = catalogue.find(None, given.stream_arn)
    row = stream.register(given.consumer_name, catalogue.clock.now_ms())
    return RegisterConsumerOutput(consumer=_shape(catalogue, stream, row))


def describe_consumer(catalogue: Catalogue, given: ConsumerInput) -> DescribeConsumerOutput:
    stream, row = _named(catalogue, given)
    consumer = _shape(catalogue, stream, row)
    consumer.stream_arn = stream.arn
    return DescribeConsumerOutput(consumer_description=consumer)


def deregister_consumer(catalogue: Catalogue, given: ConsumerInput) -> None:
    stream, row = _named(catalogue, given)
    stream.deregister(row.name)


def list_consumers(catalogue: Catalogue, given: ListConsumersInput) -> ListConsumersOutput:
    now_ms = catalogue.clock.now_ms()
    stream = catalogue.find(None, given.stream_arn)
    after = ""
    if given.next_token is not None:
        after = tokens.read_page(given.next_token, ConsumersPage, now_ms, TOKEN_EXPIRY_S).after_name
    rest = [stream.consumers[name] for name in sorted(stream.consumers) if name > after]
    shown = rest[: given.max_results or 100]
    token = None
    if len(rest) > len(shown):
        token = tokens.write(ConsumersPage(now_ms, stream.name, shown[-1].name))
    return ListConsumersOutput(consumers=[_shape(catalogue, stream, row) for row in shown], next_token=token)
