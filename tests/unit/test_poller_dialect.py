"""Polluted CSV: what is right is read, and what is wrong costs its own line and no other."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from io import BytesIO, StringIO, TextIOWrapper

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from poller.dialect import ESCAPES, Judgement, Table
from tidegate.drops import CsvDrop
from tidegate.errors import Rejected
from tidegate.feeds import Env

FEED = CsvDrop(bucket=Env("B"), prefix="p/", key="id", delimiter=";")


def table(text: str | bytes, feed: CsvDrop = FEED) -> Table:
    body = text if isinstance(text, bytes) else text.encode(feed.encoding)
    return Table(TextIOWrapper(BytesIO(body), feed.encoding, errors=ESCAPES, newline=""), feed, "1.csv")


def read(text: str | bytes, feed: CsvDrop = FEED) -> tuple[list[str], list[tuple[int, str]]]:
    """The keys that were read and the lines that could not be."""
    found = list(table(text, feed))
    rows = [each[feed.key] for each in found if not each.fault]
    return rows, [(each.line, each.fault) for each in found if each.fault]


def good(text: str | bytes, feed: CsvDrop = FEED) -> list[dict[str, str]]:
    """The rows that were read."""
    return [dict(each) for each in table(text, feed) if not each.fault]


def test_a_polluted_file_loses_its_bad_lines_and_nothing_else() -> None:
    text = (
        'id;name;price\r\n1;ok;2,5\r\n2;too many;3;4\r\n3;few\r\n4;"open;5\r\n5;good;6\r\n6;"in" between;7\r\n'
        '7;"two\r\nlines";8\r\n\r\n8;Grüße;9\r\n9;a "quote" inside;1\r\n10;spreadsheet;2;;;\r\n11;end;3'
    )
    rows, faults = read(text, replace(FEED, encoding="latin-1"))
    assert rows == ["1", "5", "7", "8", "9", "10", "11"]
    assert [line for line, _ in faults] == [3, 4, 5, 7]
    [spread] = [each for each in table(text) if each.get("id") == "7"]
    assert (spread, spread.line) == ({"id": "7", "name": "two\r\nlines", "price": "8"}, 8)


def test_a_quote_that_is_never_closed_costs_one_line() -> None:
    lines = [f'{at};"name {at}' if at == 1_000 else f"{at};name {at}" for at in range(5_000)]
    rows, faults = read("id;name\n" + "\n".join(lines))
    assert len(rows) == 4_999
    assert [line for line, _ in faults] == [1_002]


def test_a_byte_of_another_encoding_costs_its_row() -> None:
    body = "id;name\n1;Zürich\n".encode() + "2;Genève\n".encode("latin-1") + b"3;Bern\n"
    assert read(body) == (["1", "3"], [(3, "not utf-8")])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252", "cp850", "latin-1"])
def test_encodings(encoding: str) -> None:
    feed = replace(FEED, encoding=encoding)
    assert good("id;name\n1;Grüße\n", feed) == [{"id": "1", "name": "Grüße"}]


def test_a_line_without_end_is_bounded() -> None:
    _, faults = read("id;name\n" + "x" * 3_000_000 + "\n9;ok\n")
    assert faults
    assert all(len(each["raw"]) <= 10_000 for each in table("id;name\n" + "x" * 3_000_000))


def test_header_drift_is_met_by_aliases() -> None:
    feed = replace(FEED, aliases=(("Id", "id"), ("Name ", "name"), ("NAME", "name")), decimal_comma=("price", "absent"))
    text = "\ufeffId ; NAME;price\n1;x;1.234,50\n"
    assert good(text, feed) == [{"id": "1", "name": "x", "price": "1234.50"}]
    below = "title\n\nprice;id\n-2,5;1\n"
    assert good(below, replace(feed, skip_lines=2)) == [{"price": "-2.5", "id": "1"}]


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "no column 'id'"), ("id,name\n1,x", "check key, delimiter"), ("id;a;a\n", "'a' more than once")],
)
def test_a_header_that_cannot_be_right_refuses_the_file(text: str, says: str) -> None:
    with pytest.raises(Rejected, match=says):
        table(text)


def test_a_header_in_another_encoding_refuses_the_file() -> None:
    with pytest.raises(Rejected, match="not utf-8"):
        table("id;Größe\n".encode("latin-1"))


cells = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
tables = st.lists(st.lists(cells, min_size=3, max_size=3).filter(any), max_size=20)


@given(tables, st.sampled_from(["\r\n", "\n"]))
def test_what_is_written_right_is_read_right(rows: list[list[str]], end: str) -> None:
    out = StringIO(newline="")
    writer = csv.writer(out, delimiter=";", lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([["id", "b", "c"], *rows])
    found = list(table(out.getvalue()))
    assert [list(each.values()) for each in found if not each.fault] == rows
    assert len(found) == len(rows)


@given(st.lists(st.sampled_from([*'ab\n\r;"\0', "1;2;3\n", '"', "ä"]), max_size=60).map("".join))
def test_whatever_comes_is_read_to_its_end(text: str) -> None:
    found = list(table("id;b;c\n" + text))
    lines = [each.line for each in found]
    assert lines == sorted(set(lines))
    # A line that is right and stands between line ends is read, whatever stands around it.
    if '"' not in text and "\0" not in text:
        expected = (text.replace("\r\n", "\n").replace("\r", "\n")).split("\n").count("1;2;3")
        assert sum(not each.fault and list(each.values()) == ["1", "2", "3"] for each in found) == expected


def judged(text: str, feed: CsvDrop, translates: Callable[[Mapping[str, str]], str] = lambda _: "") -> Judgement:
    judgement = Judgement(feed, translates)
    for each in table(text, feed):
        judgement.look(each)
    return judgement


def test_thresholds_refuse_a_file_whole_and_say_where_it_began() -> None:
    feed = replace(FEED, bad_rows=3, bad_percent=10)
    good = "".join(f"{at};x\n" for at in range(60))
    few = judged("id;name\n" + good + "bad\n" * 6, feed)
    assert (few.rows, few.faults, few.refusal) == (66, 6, "")
    many = judged("id;name\n" + good + "bad\n" * 7, feed)
    assert many.refusal == "7 of 67 rows cannot be read; 1.csv line 62: 1 columns instead of 2"
    drifted = judged("id;name\n" + good, feed, lambda row: "no price" if int(row["id"]) > 50 else "")
    assert drifted.refusal == "9 of 60 rows cannot be translated; 1.csv line 53: no price"
    assert judged("id;name\n", feed).refusal == "it has no rows"
