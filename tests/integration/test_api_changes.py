"""What changed since a cursor: nothing is skipped in whatever order transactions commit, and nothing is told to strangers."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
import msgspec
import pytest

from api import changes, selection
from api.app import App
from api.request import Request
from tests.integration.harbour import MASTER, NOW, OWNER_1, OWNER_2, Harbour, Reply, Row, opened
from tests.integration.harbour_bubble import Ship, bubble
from tidegate import entity
from tidegate.entity import describe
from worker.literals import array
from worker.statements import EntityStatements

PATH = "/v1/ships/changes"


@pytest.fixture(scope="module")
def harbour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harbour]:
    with opened(tmp_path_factory.mktemp("harbour") / "migrations", count=30) as made:
        yield made


class Reader:
    """Follows a collection as a page does: what it was shown, by key."""

    def __init__(self, harbour: Harbour, who: Mapping[str, object], query: Mapping[str, str] | None = None) -> None:
        self._harbour = harbour
        self._who = who
        self._query = dict(query or {})
        self.cursor: str = self.ask().json["next_cursor"]
        # The cursor first: what changes while the rows are read is told afterwards.
        pages = harbour.walk("/v1/ships", who, {"limit": "200"})
        self.rows: dict[str, Row] = {row["imo"]: row for items in pages for row in items}

    def ask(self, **query: str) -> Reply:
        return self._harbour.ask(PATH, self._who, self._query | query)

    def changes(self) -> list[Row]:
        """All that there is now, page after page."""
        found: list[Row] = []
        while True:
            reply = self.ask(cursor=self.cursor)
            self.cursor = reply.headers["next-cursor"]
            if reply.status == 304:
                assert reply.text == ""
                return found
            assert reply.status == 200, reply.text
            assert reply.json["next_cursor"] == self.cursor
            found += reply.json["changes"]
            if not reply.json["has_more"]:
                return found

    def follow(self) -> None:
        for change in self.changes():
            if change["change"] == "removed":
                self.rows.pop(change["key"], None)
            else:
                self.rows[change["key"]] = change["row"]

    def truth(self) -> dict[str, Row]:
        pages = self._harbour.walk("/v1/ships", self._who, {"limit": "200"})
        return {row["imo"]: row for items in pages for row in items}


@asynccontextmanager
async def connected(harbour: Harbour) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(harbour.postgres.dsn)
    try:
        yield connection
    finally:
        await connection.close()


def test_nothing_changed_is_304_with_a_hint(harbour: Harbour) -> None:
    first = harbour.ask(PATH, OWNER_1)
    assert (first.status, first.json["changes"], first.json["has_more"]) == (200, [], False)
    again = harbour.ask(PATH, OWNER_1, {"cursor": first.json["next_cursor"]})
    assert (again.status, again.text) == (304, "")
    assert again.headers["retry-after"] == "2"
    assert again.headers["data-as-of"] == "2026-11-21T05:55:00Z"
    third = harbour.ask(PATH, OWNER_1, {"cursor": again.headers["next-cursor"]})
    assert third.status == 304


def test_a_change_is_shown_as_the_row_is_now(harbour: Harbour) -> None:
    reader = Reader(harbour, MASTER)
    harbour.execute(
        "UPDATE ships SET name = 'once' WHERE imo = 'imo0001'", "UPDATE ships SET name = 'twice' WHERE imo = 'imo0001'"
    )
    [change] = reader.changes()
    assert (change["change"], change["key"]) == ("shown", "imo0001")
    assert change["row"] == harbour.ask("/v1/ships/imo0001", MASTER).json
    assert reader.changes() == []
    sparse = Reader(harbour, MASTER, {"fields": "name"})
    harbour.execute("UPDATE ships SET name = 'thrice' WHERE imo = 'imo0001'")
    assert sparse.changes() == [{"change": "shown", "key": "imo0001", "row": {"imo": "imo0001", "name": "thrice"}}]


def test_a_row_that_leaves_a_view_is_a_removal_without_payload(harbour: Harbour) -> None:
    harbour.execute("UPDATE ships SET owner = 'o1', agent = NULL WHERE imo = 'imo0002'")
    mine, other, master = (Reader(harbour, who) for who in (OWNER_1, OWNER_2, MASTER))
    harbour.execute("UPDATE ships SET owner = 'o2', name = 'secret' WHERE imo = 'imo0002'")
    assert mine.changes() == [{"change": "removed", "key": "imo0002"}]
    assert [change["row"]["name"] for change in other.changes()] == ["secret"]
    assert [change["change"] for change in master.changes()] == ["shown"], "who sees all sees it still"
    harbour.execute("UPDATE ships SET _deleted = true WHERE imo = 'imo0002'")
    assert mine.changes() == [], "it was nobody's business any more"
    for reader in (other, master):
        assert reader.changes() == [{"change": "removed", "key": "imo0002"}]
    harbour.execute("UPDATE ships SET _deleted = false, owner = 'o1' WHERE imo = 'imo0002'")
    assert [change["change"] for change in mine.changes()] == ["shown"], "and it can come back"
    assert other.changes() == []


def test_who_never_saw_a_row_is_told_nothing(harbour: Harbour) -> None:
    harbour.execute("UPDATE ships SET owner = 'o1', agent = NULL WHERE imo IN ('imo0003', 'imo0004')")
    stranger = Reader(harbour, {**OWNER_2, "username": "owner-o3"})
    harbour.execute(
        "UPDATE ships SET _deleted = true WHERE imo = 'imo0003'",
        "UPDATE ships SET owner = 'o2' WHERE imo = 'imo0004'",
        "UPDATE ships SET _deleted = false WHERE imo = 'imo0003'",
    )
    assert stranger.changes() == []
    for viewers, sees in (
        ("", False),
        ('{"owner": ["o3"]}', False),
        ('{"owner": ["o1"]}', True),
        ('{"master": ["x"]}', True),
    ):
        claims = f"SELECT set_config('tidegate.viewers', '{viewers}', false)"
        assert harbour.run(seen(harbour, claims)) is sees, viewers


async def seen(harbour: Harbour, claims: str) -> bool:
    connection = await asyncpg.connect(harbour.reader_url)
    try:
        await connection.execute(claims)
        return bool(await connection.fetchval("SELECT EXISTS (SELECT FROM tidegate.departure)"))
    finally:
        await connection.close()


@pytest.mark.parametrize(
    "statement", ["INSERT INTO tidegate.departure (relation, key, xid, seen_by) VALUES ('ships', 'k', 1, '{}')",
                  "UPDATE tidegate.departure SET seen_by = '{}'", "DELETE FROM tidegate.departure"]
)  # fmt: skip
def test_the_reader_s_login_cannot_write_departures(harbour: Harbour, statement: str) -> None:
    async def attempt() -> None:
        connection = await asyncpg.connect(harbour.reader_url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        harbour.run(attempt())


def test_what_commits_late_is_not_skipped(harbour: Harbour) -> None:
    """The page goes on from below the oldest transaction that runs, so later commits wait for it, and none is lost."""

    async def half_done(connection: Any) -> None:
        await connection.execute("BEGIN")
        await connection.execute("UPDATE ships SET name = 'late' WHERE imo = 'imo0005'")

    async def play() -> None:
        async with connected(harbour) as slow, connected(harbour) as quick:
            await half_done(slow)
            steps.append(slow)
            await quick.execute("UPDATE ships SET name = 'early' WHERE imo = 'imo0006'")
            waiting.append(await app_changes(reader))
            await slow.execute("COMMIT")
            waiting.append(await app_changes(reader))

    async def app_changes(reader: Reader) -> list[Row]:
        found = await ask(harbour, reader.cursor)
        reader.cursor = found[1]
        return found[0]

    steps: list[Any] = []
    waiting: list[list[Row]] = []
    reader = Reader(harbour, MASTER)
    harbour.run(play())
    assert waiting[0] == [], "the early one waits for the one that began before it"
    assert {(change["key"], change["row"]["name"]) for change in waiting[1]} == {
        ("imo0005", "late"),
        ("imo0006", "early"),
    }


def test_what_is_held_back_does_not_look_fresh(harbour: Harbour) -> None:
    """A later watermark with its rows is there, but they are not told yet, for an older transaction still runs."""

    async def play(cursor: str) -> list[tuple[str | None, int]]:
        seen: list[tuple[str | None, int]] = []

        async def look() -> None:
            nonlocal cursor
            request = Request(
                method="GET", path=PATH, query={"cursor": cursor}, headers={}, claims=MASTER, request_id="r"
            )  # fmt: skip
            answer = await harbour.app.answer(request)
            cursor = answer.headers["Next-Cursor"]
            told = msgspec.json.decode(answer.body)["changes"] if answer.status == 200 else []
            seen.append((answer.headers.get("Data-As-Of"), len(told)))

        async with connected(harbour) as slow, connected(harbour) as quick:
            await slow.execute("BEGIN")
            await slow.execute("UPDATE ships SET name = 'slow' WHERE imo = 'imo0007'")
            await quick.execute("BEGIN")
            await quick.execute("UPDATE ships SET name = 'fresh' WHERE imo = 'imo0008'")
            await quick.execute(
                "UPDATE tidegate.watermark SET as_of = '2026-11-21T05:59:00Z' WHERE source = 'register'"
            )
            await quick.execute("COMMIT")
            await look()
            await look()
            await slow.execute("COMMIT")
            await look()
            await look()
            await quick.execute(
                "UPDATE tidegate.watermark SET as_of = '2026-11-21T05:55:00Z' WHERE source = 'register'"
            )
        return seen

    before, then = "2026-11-21T05:55:00Z", "2026-11-21T05:59:00Z"
    assert harbour.run(play(Reader(harbour, MASTER).cursor)) == [(before, 0), (before, 0), (then, 2), (then, 0)]


async def ask(harbour: Harbour, cursor: str) -> tuple[list[Row], str]:
    request = Request(
        method="GET", path=PATH, query={"cursor": cursor, "limit": "200"}, headers={}, claims=MASTER, request_id="r"
    )  # fmt: skip
    answer = await harbour.app.answer(request)
    body: dict[str, Any] = (
        msgspec.json.decode(answer.body) if answer.status == 200 else {"changes": [], "has_more": False}
    )
    assert not body["has_more"]
    return body["changes"], answer.headers["Next-Cursor"]


def test_a_page_that_follows_sees_what_a_page_that_reads_anew_sees(harbour: Harbour) -> None:
    """Transactions of many rows that overlap, commit in any order or are rolled back; three readers follow meanwhile."""
    chance = random.Random(11)
    readers = [Reader(harbour, who, {"limit": "7"}) for who in (OWNER_1, OWNER_2, MASTER)]
    imos = sorted(harbour.ships)

    def change() -> str:
        what = chance.choice(
            ["name = 'n{n}'", "owner = 'o1'", "owner = 'o2', agent = NULL", "agent = 'o1'", "_deleted = NOT _deleted",
             "owner = 'o3', agent = NULL", "tonnage = {n}", "name = name"]
        )  # fmt: skip
        return f"UPDATE ships SET {what.format(n=chance.randrange(1000))} WHERE imo = "

    async def begin(connections: Sequence[Any], shares: Sequence[list[str]]) -> None:
        for _ in range(6):
            writer = chance.randrange(len(connections))
            await connections[writer].execute(f"{change()}'{chance.choice(shares[writer])}'")

    for _ in range(12):
        # Each transaction has rows of its own, or they would wait for one another.
        shuffled = chance.sample(imos, len(imos))
        shares = [shuffled[start::4] for start in range(4)]
        connections = [harbour.run(asyncpg.connect(harbour.postgres.dsn)) for _ in shares]
        for connection in connections:
            harbour.run(connection.execute("BEGIN"))
        for connection in chance.sample(connections, len(connections)):
            harbour.run(begin(connections, shares))
            readers[chance.randrange(3)].follow()
            harbour.run(connection.execute(chance.choice(["COMMIT", "COMMIT", "ROLLBACK"])))
            harbour.run(connection.execute("BEGIN"))
        for connection in connections:
            harbour.run(connection.execute("COMMIT"))
            harbour.run(connection.close())
    for reader in readers:
        reader.follow()
        assert reader.rows == reader.truth()


def test_the_worker_s_own_writing_tells_of_what_changed_only(harbour: Harbour) -> None:
    statements = EntityStatements(describe(Ship))
    rows = harbour.run(columns_of(harbour, "imo0010"))

    def arguments(version: int, **changes: Any) -> list[str]:
        row = {**rows, **changes}
        values = [row[field.name] for field in describe(Ship).fields]
        own = [0, version, 1, 1, 1, row["_deleted"], f"e{version}", NOW]
        return [array([value]) for value in [*values, *own]]

    async def write(*given: str) -> None:
        async with connected(harbour) as connection:
            await connection.execute("SET ROLE tidegate_worker")
            await connection.fetch(statements.upsert, *given)

    reader = Reader(harbour, MASTER)
    harbour.run(write(*arguments(5)))
    assert reader.changes() == [], "the version moved, what the row shows did not"
    harbour.run(write(*arguments(6, name="renamed")))
    assert [change["row"]["name"] for change in reader.changes()] == ["renamed"]
    harbour.run(write(*arguments(5, name="stale")))
    assert reader.changes() == []
    harbour.run(write(*arguments(7, _deleted=True, owner=None, agent=None)))
    assert reader.changes() == [{"change": "removed", "key": "imo0010"}]
    fresh = {"imo": "imo9000", "name": "new"}
    harbour.run(write(*arguments(1, **fresh)))
    assert [change["key"] for change in reader.changes()] == ["imo9000"]


def test_a_worker_of_an_earlier_release_is_told_of_too(harbour: Harbour) -> None:
    """It gives changed content a new event and a higher version, and knows no `_changed`."""
    reader = Reader(harbour, MASTER)
    moved = "_source_version = _source_version + 1"
    harbour.execute(f"UPDATE ships SET name = 'older', _event_id = 'other', {moved} WHERE imo = 'imo0011'")
    assert [change["row"]["name"] for change in reader.changes()] == ["older"]
    harbour.execute(f"UPDATE ships SET {moved} WHERE imo = 'imo0011'")
    assert reader.changes() == [], "the same content in a higher version"


async def columns_of(harbour: Harbour, imo: str) -> Row:
    async with connected(harbour) as connection:
        return dict(await connection.fetchrow("SELECT * FROM ships WHERE imo = $1", imo))


def test_a_cursor_grows_old(harbour: Harbour) -> None:
    given = harbour.ask(PATH, MASTER).json["next_cursor"]
    later = App(bubble, harbour.database, harbour.options(now=lambda: NOW + timedelta(days=2)))
    reply = harbour.ask(PATH, MASTER, {"cursor": given}, app=later)
    assert (reply.status, reply.json["type"]) == (410, "urn:tidegate:problem:cursor-gone")
    assert reply.json["where"] == {"in": "query", "name": "cursor"}


def test_a_cursor_of_a_database_that_was_set_back_is_gone(harbour: Harbour) -> None:
    options = harbour.options()
    bound = changes.bound(describe(Ship), selection.fields_only(describe(Ship), {}))
    caller = 's3\npage\n{"everyone":["*"],"master":["north"]}'
    ahead = options.cursors.seal(caller, bound, [2**40, "", int(NOW.timestamp()), None])
    reply = harbour.ask(PATH, MASTER, {"cursor": ahead})
    assert (reply.status, reply.json["type"]) == (410, "urn:tidegate:problem:cursor-gone")


def test_a_cursor_ends_with_the_release_that_shows_rows_to_others() -> None:
    class Other(Ship):
        meta = msgspec.structs.replace(Ship.meta, readers=(entity.Reader(entity.EVERYONE),))

    mine, other = describe(Ship), describe(Other)
    assert changes.bound(mine, selection.fields_only(mine, {})) != changes.bound(
        other, selection.fields_only(other, {})
    )


@pytest.mark.parametrize("query", [{"flag": "ch"}, {"sort": "name"}, {"embed": "berth"}, {"cursor": "made-up"}])
def test_what_it_does_not_take_is_refused(harbour: Harbour, query: dict[str, str]) -> None:
    assert harbour.ask(PATH, MASTER, query).status == 400


def test_a_cursor_of_changes_is_no_cursor_of_pages(harbour: Harbour) -> None:
    given = harbour.ask(PATH, MASTER).json["next_cursor"]
    assert harbour.ask("/v1/ships", MASTER, {"cursor": given}).status == 400
