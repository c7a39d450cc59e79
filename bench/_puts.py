"""A Kinesis that only takes records, as cheap as can be, over HTTP in a process of its own; and says what it was sent.

It throttles nobody. Records go to the shard of their hash key and are kept as they came. `Check`, an operation of its
own, forgets them and answers what they were: how many events, of how many keys some came after a newer one, and how many
are on a shard that their own key does not belong to.

    python -m bench._puts SHARDS      prints its port, serves until its input ends
"""

from __future__ import annotations

import asyncio
import binascii
import subprocess
import sys
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from worker import kpl

STREAM = "puts"
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.1\r\nContent-Length: %d\r\n\r\n"
_KEYS = 1 << 128


class Checked(msgspec.Struct, frozen=True):
    """What was sent since the last check."""

    events: int
    records: int
    out_of_order: int
    misplaced: int


class _Entry(msgspec.Struct, rename="pascal", gc=False):
    partition_key: str
    data: str
    explicit_hash_key: str | None = None


class _Puts(msgspec.Struct):
    entries: list[_Entry] = msgspec.field(name="Records")


class _Event(msgspec.Struct, gc=False):
    subject: str
    tidegateversion: str


_puts = msgspec.json.Decoder(_Puts)
_events = msgspec.json.Decoder(_Event)


@contextmanager
def serving(shards: int) -> Iterator[str]:
    """Its address, while the block runs."""
    command = [sys.executable, "-m", "bench._puts", str(shards)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        # Leaving the block closes its input, which ends it.


class _Stream:
    def __init__(self, shards: int) -> None:
        self._starts = [number * (_KEYS // shards) for number in range(shards)]
        self._ids = [f"shardId-{number:012}" for number in range(shards)]
        self._taken = [
            msgspec.json.encode({"SequenceNumber": "49" * 28, "ShardId": shard_id}) for shard_id in self._ids
        ]
        ends = [*(start - 1 for start in self._starts[1:]), _KEYS - 1]
        self._shards = [
            {
                "ShardId": shard_id,
                "HashKeyRange": {"StartingHashKey": str(start), "EndingHashKey": str(end)},
                "SequenceNumberRange": {"StartingSequenceNumber": "1"},
            }
            for shard_id, start, end in zip(self._ids, self._starts, ends, strict=True)
        ]
        self._kept: list[tuple[int, _Entry]] = []

    def answer(self, operation: str, body: bytes) -> bytes:
        if operation == "putrecords":
            return self._put(_puts.decode(body).entries)
        if operation == "check":
            return msgspec.json.encode(self._check())
        description: dict[str, Any] = {
            "StreamName": STREAM, "StreamARN": "arn", "StreamStatus": "ACTIVE", "Shards": self._shards,
            "HasMoreShards": False, "RetentionPeriodHours": 24, "StreamCreationTimestamp": 0, "EnhancedMonitoring": [],
        }  # fmt: skip
        return msgspec.json.encode({"StreamDescription": description, "Shards": self._shards})

    def _put(self, entries: list[_Entry]) -> bytes:
        homes = [self._home(entry.partition_key, entry.explicit_hash_key) for entry in entries]
        self._kept += zip(homes, entries, strict=True)
        return b'{"FailedRecordCount":0,"Records":[%b]}' % b",".join([self._taken[home] for home in homes])

    def _home(self, key: str, explicit: str | None) -> int:
        return bisect_right(self._starts, int(explicit) if explicit else kpl.hash_key(key)) - 1

    def _check(self) -> Checked:
        newest: dict[str, tuple[int, ...]] = {}
        events = misplaced = 0
        disordered: set[str] = set()
        for home, entry in self._kept:
            data = binascii.a2b_base64(entry.data)
            inner = kpl.split(data) or [kpl.UserRecord(entry.partition_key, kpl.hash_key(entry.partition_key), data)]
            for each in inner:
                event = _events.decode(each.data)
                version = tuple(map(int, event.tidegateversion.split(".")))
                if version < newest.get(event.subject, ()):
                    disordered.add(event.subject)
                newest[event.subject] = version
                misplaced += self._home(each.partition_key, None) != home
            events += len(inner)
        records = len(self._kept)
        self._kept.clear()
        return Checked(events, records, len(disordered), misplaced)


class _Connection(asyncio.Protocol):
    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self._received: list[bytes] = []
        self._missing = 0
        self._operation = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        if not self._operation:
            head, found, data = b"".join([*self._received, data]).partition(b"\r\n\r\n")
            if not found:
                self._received = [head]
                return
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
            self._operation = fields[b"x-amz-target"].rpartition(b".")[2].decode()
            self._missing = int(fields[b"content-length"])
            self._received = []
        self._received.append(data)
        self._missing -= len(data)
        if self._missing <= 0:
            answer = self._stream.answer(self._operation, b"".join(self._received))
            self._received, self._operation = [], ""
            self._transport.write(_HEAD % len(answer) + answer)


async def _serve(shards: int) -> None:
    stream = _Stream(shards)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(stream), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
