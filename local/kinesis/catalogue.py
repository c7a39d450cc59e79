"""All streams under one directory, which one process at a time may use."""

from __future__ import annotations

import fcntl
import os
import re
import shutil

from local.kinesis import manifest
from local.kinesis.errors import LogDamaged, Refused, in_use, invalid_argument, not_found
from local.kinesis.model import initial_shards
from local.kinesis.settings import ACCOUNT_ID, Clock, Settings
from local.kinesis.stream import Stream

_STREAM_ARN = re.compile(r"arn:aws[a-z-]*:kinesis:[a-z0-9-]+:\d{12}:stream/([a-zA-Z0-9_.-]{1,128})")
_STOPPING = Refused("InternalFailureException", "The server is stopping.", status=500)


class Catalogue:
    """The streams by name. Opening it recovers every log; `close` releases the directory.

    Raises LogDamaged when another process has the directory or a log cannot be read.
    """

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self.settings = settings
        self.clock = clock
        self.streams: dict[str, Stream] = {}
        settings.data.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(settings.data / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise LogDamaged(f"{settings.data} is in use by another process; give each server its own") from None
        self._open_streams()

    @property
    def damaged_bytes(self) -> int:
        """How much of torn last lines was cut off at the start."""
        return sum(state.log.damaged_bytes for stream in self.streams.values() for state in stream.states.values())

    def create(self, name: str, shard_count: int, mode: str) -> Stream:
        if name in self.streams:
            raise in_use(f"Stream {name} under account {ACCOUNT_ID} already exists.")
        now_ms = self.clock.now_ms()
        stream = Stream.create(self.settings, name, initial_shards(shard_count, now_ms), mode, now_ms)
        self.streams[name] = stream
        return stream

    def find(self, name: str | None, arn: str | None = None) -> Stream:
        """The stream of a name or an ARN, trimmed to its retention. Raises Refused when there is none."""
        if arn is not None:
            match = _STREAM_ARN.fullmatch(arn)
            if match is None:
                raise invalid_argument(f"{arn} is not the ARN of a stream.")
            if name not in (None, match[1]):
                raise invalid_argument(f"StreamName {name} and StreamARN {arn} do not match.")
            name = match[1]
        if name is None:
            raise invalid_argument("Either StreamName or StreamARN must be given.")
        stream = self.streams.get(name)
        if stream is None:
            raise not_found(f"Stream {name} under account {ACCOUNT_ID} not found.")
        stream.trim(self.clock.now_ms())
        return stream

    def remove(self, stream: Stream) -> None:
        del self.streams[stream.name]
        stream.remove(not_found(f"Stream {stream.name} under account {ACCOUNT_ID} is deleted."))

    def end_subscriptions(self) -> None:
        for stream in self.streams.values():
            stream.close(_STOPPING)

    def close(self) -> None:
        self.end_subscriptions()
        os.close(self._lock)

    def _open_streams(self) -> None:
        for directory in sorted(self.settings.data.iterdir()):
            path = directory / "stream.json"
            if directory.name.startswith("stream-") and path.exists():
                saved = manifest.load(path)
                self.streams[saved.name] = Stream(self.settings, directory, saved)
            elif directory.name.startswith(("stream-", "deleted-")):
                # A creation or a removal that the process did not live to finish, and that nobody was told of.
                shutil.rmtree(directory)
