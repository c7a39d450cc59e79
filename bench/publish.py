"""Events per second of a whole producer on one core, from key and bytes to acknowledged by a Kinesis over HTTP.

A server process on another core takes everything at once and keeps it. Each side runs in a process of its own, in turns,
and its best turn counts, by the wall's clock. `bench/_producers.py` says what each side does. Like is compared with like:
aggregates with aiokpl's, plain records with async-kinesis'. After each turn the server looks at what it was sent; ours must
have every event on the shard of its own key, and no key out of order. The last kind of line says of how many of 2,000 keys
an event arrived behind a newer one, with nothing failing on the way.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import msgspec

from bench import Result
from bench._puts import Checked, serving
from tidegate import lifecycle

SHARDS = 4
ROUNDS = 3
# Ours sends more, or it would be over at once.
PAGES = {"tidegate": 20, "tidegate-aggregated": 20, "aiokpl": 6, "async-kinesis": 6}
PAIRS = {"aiokpl": "tidegate-aggregated", "async-kinesis": "tidegate"}


def run() -> Iterator[Result]:
    best = dict.fromkeys(PAGES, 0.0)
    disorder = dict.fromkeys(PAGES, 0)
    with serving(SHARDS) as url:
        for _ in range(ROUNDS):
            for side, pages in PAGES.items():
                best[side] = max(best[side], _alone(side, url, pages))
                checked = _check(url)
                assert checked.misplaced == 0 or side not in PAIRS.values(), checked
                disorder[side] = max(disorder[side], checked.out_of_order)
    for peer, ours in PAIRS.items():
        assert disorder[ours] == 0, disorder
        yield Result.of("publish", "events/s", best[ours], peer, best[peer])
    for peer, ours in PAIRS.items():
        yield _order(disorder[ours], peer, disorder[peer])


def _order(ours: int, peer: str, theirs: int) -> Result:
    """The ratio is of one more than each, so that none against none is 1."""
    return Result(
        bench="publish-order", value=ours, unit="keys out of order", baseline=peer, baseline_value=theirs,
        ratio=round((theirs + 1) / (ours + 1), 2),
    )  # fmt: skip


def _check(url: str) -> Checked:
    asked = urllib.request.Request(url, b"{}", {"X-Amz-Target": "Kinesis.Check"})
    with urllib.request.urlopen(asked) as answer:
        return msgspec.json.decode(answer.read(), type=Checked)


def _alone(side: str, url: str, pages: int) -> float:
    """In a fresh process, so that no side inherits the memory of another."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, side, url, pages).result()


def measure(side: str, url: str, count: int) -> float:
    from bench._producers import PAGE_EVENTS, SIDES, pages  # noqa: PLC0415  (the parent needs none of it)

    os.environ |= {
        "AWS_DEFAULT_REGION": "eu-central-1", "AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench",
    }  # fmt: skip
    lifecycle.set_up_logging("error")
    for name in ("kinesis", "asyncio", "aiokpl"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    given = pages(count)
    # The first page opens connections and loads models.
    asyncio.run(SIDES[side](url, given[:1]))
    return count * PAGE_EVENTS / asyncio.run(SIDES[side](url, given))
