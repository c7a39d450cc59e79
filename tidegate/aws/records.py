"""GetRecords, decoded more than twenty times faster than by botocore's own parser.

botocore walks the service model for every field of every record, and that is where a Python consumer spends its
time. aiobotocore keeps credentials, signing, retries and endpoints; only the parser of this reply, and of that to
PutRecords, is ours: msgspec reads the JSON straight into typed structs, base64 included. Every other operation, and
every error reply, goes to the stock parser.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec
from aiobotocore.parsers import (
    AioJSONParser,
    AioResponseParserFactory,
)
from botocore.parsers import ResponseParserError
from msgspec import Struct, field

from tidegate.aws.failures import aws_errors
from tidegate.aws.puts import decode_puts
from tidegate.errors import Transient
from tidegate.record import Part, Record, Records, StampedRecord


class HashKeyRange(Struct, frozen=True, rename="pascal"):
    """Both ends are included; decimal text of up to 128 bits."""

    starting_hash_key: str
    ending_hash_key: str


class ChildShard(Struct, frozen=True, rename="pascal"):
    """What a closed shard became. A merged one names both its parents."""

    shard_id: str
    parent_shards: list[str]
    hash_key_range: HashKeyRange


class RecordsPage(Struct, frozen=True):
    """One GetRecords reply. `next_iterator` None means that the shard is closed and this was its last page,
    which may still carry records; `child_shards` then says where its keys went on."""

    records: Records
    next_iterator: str | None
    millis_behind_latest: int
    child_shards: list[ChildShard] | None = None


class _Reply(Struct, rename="pascal"):
    """A reply as it stands on the wire."""

    # Every page states them, an empty one too. What does not is no page, and must not pass for the last of a shard.
    records: list[StampedRecord]
    next_iterator: str | None = field(name="NextShardIterator", default=None)
    millis_behind_latest: int = 0
    child_shards: list[ChildShard] | None = None


_REPLY = msgspec.json.Decoder(_Reply)
Found = TypeVar("Found", bound=Record)
# When a record was accepted is looked at in few of them, and takes a sixteenth of their time.
_PART = msgspec.json.Decoder(list[Record])
_STAMPED = msgspec.json.Decoder(list[StampedRecord])
_PART_BYTES = 256 * 1024
"""Text that is decoded at once: what becomes of it finds room in a core's own cache."""
_BEGIN, _END = b'"Records":[{"', b"}]"
_AROUND_BYTES = 4096
"""What stands before the records, and what behind them, is shorter."""
_BETWEEN = b'},{"'
_JOINT = re.compile(rb'\},\{"[A-Za-z]')


def decode_page(blocks: Sequence[bytes]) -> RecordsPage:
    """The typed page in the body of a GetRecords reply, which may have come in blocks. Raises msgspec.DecodeError."""
    if sum(map(len, blocks)) > 2 * _PART_BYTES and (page := _by_parts(blocks)) is not None:
        return page
    return _page(_REPLY.decode(b"".join(blocks)))


def _page(reply: _Reply, records: Records | None = None) -> RecordsPage:
    known = Records(reply.records) if records is None else records
    return RecordsPage(known, reply.next_iterator, reply.millis_behind_latest, reply.child_shards)


def _by_parts(blocks: Sequence[bytes]) -> RecordsPage | None:
    """A page whose records are decoded later; None for a body that is not plainly one, or is written in another way."""
    blocks = list(blocks)
    while len(blocks) > 1 and len(blocks[0]) < _AROUND_BYTES:
        blocks[:2] = [blocks[0] + blocks[1]]
    while len(blocks) > 1 and len(blocks[-1]) < _AROUND_BYTES:
        blocks[-2:] = [blocks[-2] + blocks[-1]]
    begin, end = blocks[0].find(_BEGIN, 0, _AROUND_BYTES), blocks[-1].rfind(_END)
    if begin < 0 or end < 0:
        return None
    begin, end = begin + len(_BEGIN) - 2, end + 1
    try:
        # What stands around the records must be a whole page without any.
        around = _REPLY.decode(blocks[0][:begin] + blocks[-1][end:])
        return _page(around, _Text(blocks, begin, end))
    except (msgspec.DecodeError, ValueError):
        return None


class _Text(Records):
    """The records of a large page, decoded part by part when they are asked for; until then they are its text.

    All at once they would be tens of thousands of objects, and gone from the processor's caches before anybody looks at
    them: to fetch them back takes longer than decoding does. For the same reason the blocks in which the text came are
    not joined.

    Where the text is cut: inside of a JSON string a quotation mark has a backslash before it. So `},{"` and a letter
    stand between two records, and nowhere else: behind a string that ends with `},{` comes no letter.
    """

    def __init__(self, blocks: Sequence[bytes], begin: int, end: int) -> None:
        """The records from `begin` in the first block to `end` in the last one.

        Raises msgspec.DecodeError or ValueError when the first ones are none, or the last is not one record.
        """
        self._blocks, self._begin, self._end = blocks, begin, end
        first = next(self._cut())
        super().__init__(_STAMPED.decode(_joined(first)))
        [self.last] = _PART.decode(_joined([memoryview(blocks[-1])[blocks[-1].rfind(_BETWEEN, 0, end) + 2 : end]]))
        # As if payloads made up as much of the rest.
        text_bytes = sum(map(len, blocks)) - begin - (len(blocks[-1]) - end)
        self._size_bytes = super().size_bytes * text_bytes // sum(map(len, first))

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def parts(self) -> Iterator[Part]:
        for number, pieces in enumerate(self._cut()):
            text = _joined(pieces)
            # The text stays with the part, and nobody else holds the records, so that it can let go of them.
            yield Part(_read(text, _PART) if number else self._known, partial(_read, text, _PART))

    def stamped(self) -> Iterator[StampedRecord]:
        for pieces in self._cut():
            yield from _read(_joined(pieces), _STAMPED)

    def _cut(self) -> Iterator[list[memoryview]]:
        """The text of some records after the other, without the commas between; each in as many pieces as blocks it is from."""
        pieces: list[memoryview] = []
        size_bytes = 0
        for number, block in enumerate(self._blocks, start=1):
            text = memoryview(block)
            at = self._begin if number == 1 else 0
            end = self._end if number == len(self._blocks) else len(block)
            while joint := _JOINT.search(block, at + max(0, _PART_BYTES - size_bytes), end):
                yield [*pieces, text[at : joint.start() + 1]]
                pieces, size_bytes, at = [], 0, joint.start() + 2
            pieces.append(text[at:end])
            size_bytes += end - at
        yield pieces


def _read(text: bytes, decoder: msgspec.json.Decoder[list[Found]]) -> list[Found]:
    """Raises Transient: to ask for the page again may help."""
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Transient(f"a page of records is not readable: {error}") from error


def _joined(pieces: Iterable[memoryview]) -> bytes:
    return b"".join((b"[", *pieces, b"]"))


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


_PARSES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "GetRecordsOutput": lambda body: {"Page": decode_page([body] if isinstance(body, bytes) else body)},
    "PutRecordsOutput": decode_puts,
}
