"""How pages are asked for and how answers name the next one; where rows are; what bodies become."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poller.bodies import parsed
from poller.paging import Following, Shown, following, next_link, page_params
from poller.rows import Odd, as_rows, rows_at
from tidegate.feeds import AfterKey, Csv, LinkHeader, NextLink, Offset, OnePage, PageNumber, PageRef, PageToken, Paging


def shown(document: object, *keys: str, link: str = "") -> Shown:
    return Shown(document, keys, link)


@pytest.mark.parametrize(
    ("paging", "page", "answer", "params", "expected"),
    [
        (OnePage(), None, shown({}, "a"), [], Following(None)),
        (PageNumber(param="p", pages="n"), None, shown({"n": 2}, "a"), [("p", "1")], Following(2)),
        (PageNumber(param="p", pages="n"), 2, shown({"n": "2"}, "a"), [("p", "2")], Following(None)),
        (PageNumber(param="p", pages="n", first=0), None, shown({"n": 2}, "a"), [("p", "0")], Following(1)),
        (PageNumber(param="p", pages="n", first=0), 1, shown({"n": 2}, "a"), [("p", "1")], Following(None)),
        (PageNumber(param="p", more="m.x"), 3, shown({"m": {"x": True}}, "a"), [("p", "3")], Following(4)),
        (PageNumber(param="p", more="m"), 3, shown({"m": False}, "a"), [("p", "3")], Following(None)),
        (PageNumber(param="p"), 3, shown([], "a"), [("p", "3")], Following(4)),
        (PageNumber(param="p"), 4, shown([]), [("p", "4")], Following(None)),
        (Offset(param="o", next="n", size_param="s", size=9), 9, shown({"n": 18}, "a"), [("o", "9"), ("s", "9")], Following(18)),
        (Offset(param="o", next="n"), 9, shown({"n": None}, "a"), [("o", "9")], Following(None)),
        (Offset(param="o"), None, shown([], "a", "b"), [("o", "0")], Following(1)),
        (Offset(param="o"), 1, shown([], "b", "c"), [("o", "1")], Following(2)),
        (Offset(param="o"), 2, shown([], "c"), [("o", "2")], Following(None, None, False)),
        (Offset(param="o"), 2, shown([], "d", "e"), [("o", "2")], Following(3, None, True)),
        (PageToken(param="t", next="x"), None, shown({"x": "abc"}, "a"), [], Following("abc")),
        (PageToken(param="t", next="x"), "abc", shown({}, "a"), [("t", "abc")], Following(None)),
        (NextLink(next="l"), None, shown({"l": "http://x/2"}, "a"), [], Following("http://x/2")),
        (LinkHeader(), None, shown([], "a", link="http://x/2"), [], Following("http://x/2")),
        (AfterKey(param="after"), "k", shown([], "l", "m"), [("after", "k")], Following("m")),
        (AfterKey(param="after"), None, shown([]), [], Following(None)),
    ],
)  # fmt: skip
def test_pages(paging: Paging, page: PageRef, answer: Shown, params: list[Any], expected: Following) -> None:
    assert page_params(paging, page) == params
    last = {1: "b", 2: "c"}.get(page) if isinstance(page, int) else None
    assert following(paging, answer, page, last) == expected


@pytest.mark.parametrize(
    ("paging", "page", "answer"),
    [
        (PageNumber(param="p", pages="n"), None, shown({}, "a")),
        (PageNumber(param="p", more="m"), None, shown({"m": "yes"}, "a")),
        (PageNumber(param="p", pages="n", total="t", size=2), 2, shown({"n": 3, "t": 5}, "c")),
        (PageNumber(param="p", pages="n", total="t", size=2), None, shown({"n": 3, "t": 5})),
        (Offset(param="o", next="n", total="t", size=2), 2, shown({"n": 4, "t": 5}, "c")),
        (Offset(param="o", next="n", total="t", size=2), 4, shown({"n": None, "t": 6}, "e")),
        (Offset(param="o", next="n"), 4, shown({"n": 4}, "e")),
        (AfterKey(param="after"), "k", shown([], "j", "k")),
    ],
)
def test_answers_that_cannot_be_right_are_refused(paging: Paging, page: PageRef, answer: Shown) -> None:
    with pytest.raises(Odd):
        following(paging, answer, page, None)


@settings(max_examples=100, deadline=None)
@given(rows=st.integers(0, 30), size=st.integers(2, 7), gone=st.integers(0, 3))
def test_counted_offsets_show_every_row_or_say_that_they_moved(rows: int, size: int, gone: int) -> None:
    """Rows that go away amid the walk move others to pages already read, unless the walk notices."""
    paging, office = Offset(param="o"), [f"K{number:03d}" for number in range(rows)]
    page, last, seen, moved = None, None, set[str](), False
    for asked in range(50):
        offset = int(page or 0)
        keys = office[offset : offset + size]
        seen |= set(keys)
        step = following(paging, shown([], *keys), page, last)
        page, last, moved = step.page, keys[-1] if keys else last, moved or step.moved
        if page is None:
            break
        if asked == 1:
            del office[:gone]
    assert page is None
    assert moved or set(office) <= seen


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('<https://x/rows?page=2>; rel="next", <https://x/rows?page=9>; rel="last"', "https://x/rows?page=2"),
        ('</rows?after=a,b>; title="one, two"; rel=next', "/rows?after=a,b"),
        ('<https://x/1>; rel="prev"', ""),
        ('<https://x/3>; rel="prefetch next"', "https://x/3"),
        ("nonsense", ""),
    ],
)
def test_link_headers(header: str, expected: str) -> None:
    assert next_link(header) == expected


def test_nested_rows_get_what_is_around_them() -> None:
    document = {
        "customers": [
            {"id": 7, "orders": [{"no": 1, "lines": [{"pos": 1}, {"pos": 2}]}, {"no": 2, "lines": []}]},
            {"id": 8},
        ]
    }
    assert rows_at(document, "customers[].orders", {"customer": "id"}) == [
        {"no": 1, "lines": [{"pos": 1}, {"pos": 2}], "customer": 7}, {"no": 2, "lines": [], "customer": 7},
    ]  # fmt: skip
    lines = rows_at(document, "customers[].orders[].lines", {"customer": "id", "order": "no"})
    assert lines == [{"pos": 1, "customer": 7, "order": 1}, {"pos": 2, "customer": 7, "order": 1}]
    assert rows_at([{"a": 1}], "", {}) == [{"a": 1}]
    for wrong in ("nothing", "customers[].id", "customers.orders"):
        with pytest.raises(Odd):
            rows_at(document, wrong, {})


def test_rows_of_another_form_are_kept_for_quarantine() -> None:
    assert as_rows([{"a": 1}, 5]) == ({"a": 1}, {"row": 5})
    assert as_rows([[1, 2], [3]], ["a", "b"]) == ({"a": 1, "b": 2}, {"row": [3]})


def test_xml() -> None:
    body = b"""<?xml version="1.0" encoding="iso-8859-1"?>
    <r:answer xmlns:r="urn:x" pages="2"><row id="1"><name>Z\xfcrich</name><tag>a</tag><tag>b</tag></row>
    <row id="2"><name/></row></r:answer>"""
    document = parsed(body, "xml", "")
    assert document == {
        "answer": {
            "@pages": "2",
            "row": [{"@id": "1", "name": "Zürich", "tag": ["a", "b"]}, {"@id": "2", "name": ""}],
        }
    }
    assert rows_at({"answer": {"row": {"@id": "1"}}}, "answer.row", {}, lone=True) == [{"@id": "1"}]
    assert rows_at({"answer": ""}, "answer.row", {}, lone=True) == []


BOMB = b'<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb"><!ENTITY c "&b;&b;&b;&b;">]><a>&c;</a>'
FETCH = b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>'


@pytest.mark.parametrize("body", [BOMB, FETCH, b"<a><b></a>", b"", b"<a>" * 200 + b"</a>" * 200])
def test_xml_that_may_not_be_read(body: bytes) -> None:
    with pytest.raises(Odd):
        parsed(body, "xml", "")


def test_csv() -> None:
    body = 'no;name;price\n1;"Müller; Söhne";12,50\n2;;\n'.encode("latin-1")
    assert parsed(body, Csv(delimiter=";"), "iso-8859-1") == [
        {"no": "1", "name": "Müller; Söhne", "price": "12,50"}, {"no": "2", "name": "", "price": ""},
    ]  # fmt: skip
    with pytest.raises(Odd):
        parsed(b"", Csv(), "")
    with pytest.raises(Odd):
        parsed(b'a,b\n"never closed', Csv(), "")
