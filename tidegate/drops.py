"""Files that business units drop under an S3 prefix, as a bubble declares them.  (pure)

CsvDrop(bucket=Env("DROPS_BUCKET"), prefix="drops/fleet/plane-", key="tailnum", delimiter=";",
        stated=Stated(pattern=r"plane-(\\d{8})", format="%Y%m%d"))
"""

from __future__ import annotations

import codecs
import re
from datetime import UTC, datetime
from typing import Literal

import msgspec

from tidegate.errors import BubbleError
from tidegate.feeds import Env


class Stated(msgspec.Struct, frozen=True, kw_only=True):
    """Where a file says of which time it is, by which files are put in order.

    pattern   a regular expression over the file's name (without its prefix's folders); its first group is the time
    metadata  the name of the object's metadata (x-amz-meta-…) that holds the time instead
    format    strptime text of the time, or "iso"
    """

    pattern: str | None = None
    metadata: str | None = None
    format: str = "%Y%m%d"

    def read(self, text: str) -> datetime | None:
        """The time in a text, in UTC where it names no zone; None when it cannot be read."""
        try:
            at = datetime.fromisoformat(text) if self.format == "iso" else datetime.strptime(text, self.format)  # noqa: DTZ007
        except ValueError:
            return None
        return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


class CsvDrop(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """CSV files under a prefix, plain, gzip (.gz) or zip (.zip, all CSV files in it).

    holds         "everything": each file is a full extract, the newest one is the whole truth, and a row missing from it
                  is deleted. "changes": each file holds what changed since the one before; no row is ever deleted
    stated        how a file says of which time it is; None: the files' names sort by their date ("everything" only)
    aliases       other names that a column has or had: ("TailNum", "tailnum") reads the first as the second
    decimal_comma columns whose numbers are written as 1.234,50; the raw row has 1234.50
    skip_lines    lines above the header
    bad_rows      a file with more rows than this that cannot be read or translated…
    bad_percent   …and more than this share of its rows, is refused whole
    notices       the address of an SQS queue that gets S3's events for the prefix; None: the prefix is listed at each poll
    list_s        with `notices`: how often the prefix is listed all the same, for events that were missed
    """

    bucket: Env
    prefix: str
    key: str
    encoding: str = "utf-8"
    delimiter: str = ","
    quote: str = '"'
    holds: Literal["everything", "changes"] = "everything"
    stated: Stated | None = None
    aliases: tuple[tuple[str, str], ...] = ()
    decimal_comma: tuple[str, ...] = ()
    skip_lines: int = 0
    bad_rows: int = 20
    bad_percent: float = 5.0
    notices: Env | None = None
    list_s: float = 60.0

    @property
    def environment(self) -> tuple[Env, ...]:
        return (self.bucket,) if self.notices is None else (self.bucket, self.notices)


def check_drop(source: str, feed: CsvDrop) -> None:
    """Raises BubbleError, which names the source, the field and the remedy."""
    name = f"source {source!r}"
    for field in ("delimiter", "quote"):
        if len(getattr(feed, field)) != 1:
            raise BubbleError(f"{name}: {field} is {getattr(feed, field)!r}; it must be one character")
    try:
        codecs.lookup(feed.encoding)
    except LookupError:
        raise BubbleError(
            f"{name}: there is no encoding {feed.encoding!r}; see Python's list of standard encodings"
        ) from None
    if feed.holds == "changes" and feed.stated is None:
        raise BubbleError(f"{name}: files of changes need an order; say with stated=Stated(…) of which time each is")
    if feed.stated is not None:
        _check_stated(name, feed.stated)


def _check_stated(name: str, stated: Stated) -> None:
    if (stated.pattern is None) == (stated.metadata is None):
        raise BubbleError(f"{name}: Stated(…) wants a pattern or the name of a metadata, one of the two")
    try:
        groups = re.compile(stated.pattern or "()").groups
    except re.error as error:
        raise BubbleError(f"{name}: the pattern {stated.pattern!r} is no regular expression: {error}") from error
    if groups < 1:
        raise BubbleError(f"{name}: the pattern {stated.pattern!r} needs a group around the time, such as (\\d{{8}})")
