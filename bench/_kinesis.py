"""A Kinesis that only reads, as cheap as can be: prepared replies over HTTP, in a process of its own.

Every shard holds the same pages. The stream's name says how many of them: `pages-3` has three. An iterator is the
number of a page, so a reply carries its successor and needs no work at all.

    python -m bench._kinesis SHARDS PAGES      prints its port, serves until its input ends
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench._stream import last_page, page

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-amz-json-1.1\r\nContent-Length: %d\r\n\r\n"
_LAST_HASH_KEY = 2**128 - 1


def stream_of(pages: int) -> str:
    return f"pages-{pages}"


@contextmanager
def serving(shards: int, pages: int) -> Iterator[str]:
    """Its address, while the block runs."""
    command = [sys.executable, "-m", "bench._kinesis", str(shards), str(pages)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        # Leaving the block closes its input, which ends it.


class Answers:
    def __init__(self, shards: int, pages: list[bytes]) -> None:
        """`pages` are bodies of GetRecords replies; the last one is the tip."""
        self._pages = [_http(body) for body in pages]
        width = _LAST_HASH_KEY // shards
        self._shards = [
            {
                "ShardId": f"shardId-{number:012}",
                "HashKeyRange": {
                    "StartingHashKey": str(number * width),
                    "EndingHashKey": str(_LAST_HASH_KEY if number == shards - 1 else (number + 1) * width - 1),
                },
                "SequenceNumberRange": {"StartingSequenceNumber": "1"},
            }
            for number in range(shards)
        ]

    def of(self, operation: str, asked: dict[str, Any]) -> bytes:
        if operation == "GetRecords":
            return self._pages[int(asked["ShardIterator"])]
        answers = {"GetShardIterator": self.iterator, "ListShards": self._list, "DescribeStream": self._describe}
        return _http(json.dumps(answers[operation](asked)).encode())

    def iterator(self, asked: dict[str, Any]) -> dict[str, Any]:
        held = int(asked["StreamName"].removeprefix("pages-"))
        return {"ShardIterator": f"{len(self._pages) - 1 - held:056}"}

    def _list(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"Shards": self._shards}

    def _describe(self, asked: dict[str, Any]) -> dict[str, Any]:
        description = {
            "StreamName": asked["StreamName"], "StreamARN": "arn", "StreamStatus": "ACTIVE", "Shards": self._shards,
            "HasMoreShards": False, "RetentionPeriodHours": 24, "StreamCreationTimestamp": 0, "EnhancedMonitoring": [],
        }  # fmt: skip
        return {"StreamDescription": description}


class _Connection(asyncio.Protocol):
    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = bytes(self._received).partition(b"\r\n\r\n")
        if not found:
            return
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if len(body) < int(fields[b"content-length"]):
            return
        self._received.clear()
        # The name was folded to lower case with the rest of the head.
        operation = next(
            name for name in ("GetRecords", "GetShardIterator", "ListShards", "DescribeStream")
            if fields[b"x-amz-target"].endswith(name.lower().encode())
        )  # fmt: skip
        self._transport.write(self._answers.of(operation, json.loads(body)))


def _http(body: bytes) -> bytes:
    return _HEAD % len(body) + body


async def serve(answers: Answers) -> None:
    """Prints the port, then answers until its input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(answers), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    held = int(sys.argv[2])
    asyncio.run(serve(Answers(int(sys.argv[1]), [*map(page, range(held)), last_page(held)])))
