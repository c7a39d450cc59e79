"""BackOffice: what a simulated back office must say about itself; the framework does the rest.

A whole one, with a store that survives SIGKILL, a life of its own, a screen, a control API and manners:

    class Loan(Record, frozen=True, kw_only=True):
        entity: ClassVar[str] = "loan"
        editable: ClassVar[tuple[str, ...]] = ("title", "reader")
        number: str
        title: str
        reader: str | None
        changed_at: datetime = NEVER

        def legacy(self) -> dict[str, str]:
            return {"NR": self.number, "TITEL": self.title, "LESER": self.reader or "",
                    "AENDZEIT": local_text(self.changed_at, ZONE)}

    class Library(BackOffice):
        kind = "library"
        records = (Loan,)

        def seed(self, kind: type[Record], desk: Desk, rows: int) -> Iterator[Record]:
            for _ in range(rows):
                yield Loan(number=f"L{desk.next('loan'):06d}", title="Heidi", reader=None, changed_at=desk.now)

        def create(self, desk: Desk) -> bool: ...      # desk.put(Loan(...)); return True
        def update(self, desk: Desk) -> bool: ...      # loan = desk.pick(Loan); desk.put(replace(loan, ...))

        def routes(self) -> dict[str, Handler]:
            return {"/LISTE": self.list}

    if __name__ == "__main__":
        raise SystemExit(run(Library))

`update`, `correct` and `delete` answer False when there was nothing to do it to.
"""

import argparse
import asyncio
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ClassVar, Literal
from zoneinfo import ZoneInfo

import msgspec
from aiohttp import web

from local.legacy.desk import Desk
from local.legacy.dialect import BadQuery
from local.legacy.manners import Handler
from local.legacy.record import Record
from local.legacy.store import Store

Deed = Literal["creates", "updates", "corrections", "deletes"]

Answer = Mapping[str, object]


class BackOffice:
    """Base of all back offices: `kind` names it, `records` are its entities."""

    kind: ClassVar[str]
    title: ClassVar[str] = ""
    records: Sequence[type[Record]]
    default_rows: ClassVar[int] = 5000
    zone: ClassVar[ZoneInfo] = ZoneInfo("Europe/Zurich")
    life_mix: ClassVar[Mapping[Deed, int]] = {"creates": 15, "updates": 60, "corrections": 15, "deletes": 10}

    store: Store
    """Set by `opened` before anything below `seed` is called."""

    def __init__(self, options: argparse.Namespace) -> None:
        """`options` is the parsed command line; raise ValueError with one clear line when it makes no sense."""

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Add options of this kind of back office to the command line."""

    def opened(self, store: Store, rows: int, rng: random.Random) -> None:
        """Take the store; on the first start, fill it."""
        self.store = store
        for kind in self.records:
            if not store.is_seeded(kind):
                desk = Desk(store, rng)
                store.seed(kind, self.seed(kind, desk, rows), desk)

    # --- what a back office writes -------------------------------------------------------------

    def seed(self, kind: type[Record], desk: Desk, rows: int) -> Iterable[Record]:
        """The first rows of one entity, complete (with their changed_at or revision)."""
        return ()

    def create(self, desk: Desk) -> bool:
        """Put one new row."""
        return False

    def update(self, desk: Desk) -> bool:
        """Move one row a step on in its life."""
        return False

    def correct(self, desk: Desk) -> bool:
        """Correct a mistake in one row."""
        return self.update(desk)

    def delete(self, desk: Desk) -> bool:
        """Delete one row; by default a random one of the first entity."""
        record = desk.pick(self.records[0])
        if record is not None:
            desk.delete(record)
        return record is not None

    def routes(self) -> Mapping[str, Handler]:
        """The legacy API: path → handler of GET. A handler may raise BadQuery."""
        return {}

    def api_key(self, request: web.Request) -> str:
        """The key that came with the request, blank for none."""
        return request.headers.get("X-Api-Key", "")

    def refusal(self, status: int, text: str) -> Answer:
        """The body of an error in this back office's dialect."""
        return {"error": status, "text": text}

    async def work_beside(self, is_out: Callable[[], bool]) -> None:
        """Runs as long as the process, such as an exporter of files. `is_out`: the office is stopped now."""
        await asyncio.Event().wait()

    # --- what the framework uses ---------------------------------------------------------------

    def does(self, deed: Deed, desk: Desk) -> bool:
        match deed:
            case "creates":
                return self.create(desk)
            case "updates":
                return self.update(desk)
            case "corrections":
                return self.correct(desk)
            case "deletes":
                return self.delete(desk)

    def understood(self, handler: Handler) -> Handler:
        """The handler, with BadQuery answered as HTTP 400 in the office's dialect."""

        async def answered(request: web.Request) -> web.StreamResponse:
            try:
                return await handler(request)
            except BadQuery as bad:
                return reply(self.refusal(400, str(bad)), 400)

        return answered


def reply(answer: Answer | Sequence[object], status: int = 200) -> web.Response:
    """A JSON response."""
    return web.Response(status=status, body=msgspec.json.encode(answer), content_type="application/json")
