"""GetRecords, decoded more than twenty times faster than by botocore's own parser.

botocore walks the service model for every field of every record, and that is where a Python consumer spends its
time. aiobotocore keeps credentials, signing, retries and endpoints; only the parser of this reply, and of that to
PutRecords, is ours: msgspec reads the JSON straight into typed structs, base64 included. Every other operation, and
every error reply, goes to the stock parser.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import msgspec
from aiobotocore.parsers import (
    AioJSONParser,
    AioResponseParserFactory,
)
from botocore.parsers import ResponseParserError
from msgspec import Struct, field

from tidegate.aws.failures import aws_errors
from tidegate.aws.puts import decode_puts
from tidegate.record import Record


class HashKeyRange(Struct, frozen=True, rename="pascal"):
    """Both ends are included; decimal text of up to 128 bits."""

    starting_hash_key: str
    ending_hash_key: str


class ChildShard(Struct, frozen=True, rename="pascal"):
    """What a closed shard became. A merged one names both its parents."""

    shard_id: str
    parent_shards: list[str]
    hash_key_range: HashKeyRange


class RecordsPage(Struct, frozen=True, rename="pascal", dict=True):
    """One GetRecords reply. `next_iterator` None means that the shard is closed and this was its last page,
    which may still carry records; `child_shards` then says where its keys went on."""

    # Every page states them, an empty one too. What does not is no page, and must not pass for the last of a shard.
    records: list[Record]
    next_iterator: str | None = field(name="NextShardIterator", default=None)
    millis_behind_latest: int = 0
    child_shards: list[ChildShard] | None = None

    @cached_property
    def may_aggregate(self) -> bool:
        """Whether any of the records may be a KPL aggregate."""
        return True

    @cached_property
    def payloads(self) -> list[bytes]:
        return [record.data for record in self.records]

    @cached_property
    def size_bytes(self) -> int:
        """The payload of all records."""
        return sum(map(len, self.payloads))


_DECODER = msgspec.json.Decoder(RecordsPage)
_AGGREGATE = b'"84maw'
"""How a text begins that is base64 of the four bytes with which KPL aggregates begin."""


def decode_page(body: bytes) -> RecordsPage:
    """The typed page in the body of a GetRecords reply. Raises msgspec.DecodeError."""
    page = _DECODER.decode(body)
    # To look once through the text is quicker than to look at every record.
    page.__dict__["may_aggregate"] = _AGGREGATE in body
    return page


async def get_records(client: Any, iterator: str, limit: int, stream_arn: str | None = None) -> RecordsPage:
    """Read one page of a shard: at most `limit` (≤ 10,000) records and 10 MiB. Another account's needs the ARN.

    `client` comes from `aws.client("kinesis")`. Raises Transient (throttled, or an expired iterator: see
    `error_code`) and Fatal.
    """
    with aws_errors("read records"):
        named = {"StreamARN": stream_arn} if stream_arn else {}
        reply = await client.get_records(ShardIterator=iterator, Limit=limit, **named)
    page: RecordsPage = reply["Page"]
    return page


class FastRecordsParserFactory(AioResponseParserFactory):  # type: ignore[misc]
    """botocore asks this factory for a parser by protocol; only JSON services get ours."""

    def create_parser(self, protocol_name: str) -> object:
        if protocol_name == "json":
            return FastRecordsParser(**self._defaults)
        return super().create_parser(protocol_name)


class FastRecordsParser(AioJSONParser):  # type: ignore[misc]
    async def _do_parse(self, response: dict[str, Any], shape: Any) -> dict[str, Any]:
        parse = None if shape is None else _PARSES.get(shape.name)
        if parse is None:
            parsed: dict[str, Any] = await super()._do_parse(response, shape)
            return parsed
        try:
            parsed = parse(response["body"])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            # A torn or foreign reply: the adapters call that Transient, as for every other operation.
            raise ResponseParserError(f"{shape.name} is not readable: {error}") from error
        self._inject_response_metadata(parsed, response["headers"])
        return parsed


_PARSES: dict[str, Callable[[bytes], dict[str, Any]]] = {
    "GetRecordsOutput": lambda body: {"Page": decode_page(body)},
    "PutRecordsOutput": decode_puts,
}
