"""A bubble whose counters ask for strict order."""

from __future__ import annotations

from msgspec.structs import replace

from tests.integration import worker_rows
from tidegate.bubble import Bubble


class Counter(worker_rows.Counter):
    """A number as key, in strict order."""

    meta = replace(worker_rows.Counter.meta, strict_order=True)


bubble = Bubble(name="counters", entities=(worker_rows.Gadget, Counter), sources=())
