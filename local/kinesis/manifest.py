"""What a stream keeps on disk beside its logs: one JSON file, replaced as a whole."""

from __future__ import annotations

from pathlib import Path

import msgspec

from local.kinesis.errors import LogDamaged
from local.kinesis.model import HashRange, Shard


class ShardRow(msgspec.Struct):
    """A shard in the manifest. Hash keys are text, because they have 128 bits."""

    index: int
    start: str
    end: str
    created_s: int
    opened_ms: int
    parent_index: int | None
    adjacent_parent_index: int | None
    closed_ms: int | None
    end_position: int | None

    @classmethod
    def of(cls, shard: Shard) -> ShardRow:
        return cls(
            index=shard.index,
            start=str(shard.hash_range.start),
            end=str(shard.hash_range.end),
            created_s=shard.created_s,
            opened_ms=shard.opened_ms,
            parent_index=shard.parent_index,
            adjacent_parent_index=shard.adjacent_parent_index,
            closed_ms=shard.closed_ms,
            end_position=shard.end_position,
        )

    def shard(self) -> Shard:
        return Shard(
            index=self.index,
            hash_range=HashRange(int(self.start), int(self.end)),
            created_s=self.created_s,
            opened_ms=self.opened_ms,
            parent_index=self.parent_index,
            adjacent_parent_index=self.adjacent_parent_index,
            closed_ms=self.closed_ms,
            end_position=self.end_position,
        )


class ConsumerRow(msgspec.Struct, frozen=True):
    """A registered consumer of a stream."""

    name: str
    created_ms: int


class Manifest(msgspec.Struct):
    """`next_index` is the number of the next shard; it never goes back, also when old shards are forgotten."""

    name: str
    created_ms: int
    retention_hours: int
    mode: str
    next_index: int
    shards: list[ShardRow]
    consumers: list[ConsumerRow]


def save(path: Path, manifest: Manifest) -> None:
    """Replace the manifest; a reader finds the old one or the new one, never half of one."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
    fresh.replace(path)


def load(path: Path) -> Manifest:
    """Read a manifest. Raises LogDamaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except msgspec.DecodeError as error:
        raise LogDamaged(f"{path}: {error}") from error
