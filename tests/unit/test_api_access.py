"""Claims → viewers: a token names exactly those that its issuer wrote into it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.access import encode_viewers, identified, viewers_of
from api.answer import Refused
from api.request import Request
from tidegate.bubble import Bubble, Viewer, check
from tidegate.edge import Inbound, Scope
from tidegate.errors import BubbleError

VIEWERS = (
    Viewer("reader", claim="username", prefix="reader-"),
    Viewer("staff", claim="cognito:groups", prefix="staff-", many=True),
    Viewer("partner", claim="scope", prefix="tidegate/partner-", many=True),
)


@pytest.mark.parametrize(
    ("claims", "found"),
    [
        ({"username": "reader-1001"}, {"everyone": ["*"], "reader": ["1001"]}),
        (
            {"username": "ann", "cognito:groups": ["evening", "staff-north", "staff-south"]},
            {"staff": ["north", "south"]},
        ),
        ({"cognito:groups": ["staff-b", "staff-a", "staff-a"]}, {"staff": ["a", "b"]}),
        ({"cognito:groups": "staff-north"}, {"staff": ["north"]}),
        ({"scope": "openid tidegate/partner-7 other/partner-8"}, {"partner": ["7"]}),
        ({"username": "reader-", "cognito:groups": []}, {}),
        ({"username": "x-reader-1"}, {}),
        ({"cognito:groups": None, "username": 17}, {}),
        ({"cognito:groups": ["staff-\0", "staff-\ud800", "staff-é"]}, {"staff": ["é"]}),
        ({"username": "reader-a b"}, {"reader": ["a b"]}),
        ({"username": "reader-1]"}, {"reader": ["1]"]}),
        ({"cognito:groups": "staff-a  staff-b "}, {"staff": ["a", "b"]}),
        ({"cognito:groups": ["staff-a b"]}, {"staff": ["a b"]}),
    ],
)
def test_claims_name_viewers(claims: Mapping[str, object], found: Mapping[str, list[str]]) -> None:
    assert viewers_of(claims, VIEWERS) == {"everyone": ["*"], **found}


@pytest.mark.parametrize(
    "username", ["[reader-1001]", "x reader-1001", "reader-", " reader-1001", "[x reader-1001]", "\treader-1001",
                 ["reader-1001"], ("x", "reader-1001"), {"reader-1001": 1}, 1001, None],
)  # fmt: skip
def test_a_freely_chosen_name_is_one_name_and_never_a_list(username: object) -> None:
    assert viewers_of({"username": username}, VIEWERS) == {"everyone": ["*"]}


@pytest.mark.parametrize(
    "groups",
    [
        "[staff-1",
        "[x,staff-1]",
        "evening\u2003staff-1",
        "evening\tstaff-1",
        "evening\nstaff-1",
        "evening,staff-1",
        "staff-",
        ["[staff-1]"],
        ["x staff-1"],
        ["[x staff-1]"],
        [["staff-1"]],
        [1],
        {"staff-1": 1},
    ],
)
def test_a_group_s_name_makes_no_other_group(groups: object) -> None:
    assert viewers_of({"cognito:groups": groups}, VIEWERS) == {"everyone": ["*"]}


@given(st.text(), st.text(min_size=1))
def test_one_value_names_exactly_its_rest(start: str, rest: str) -> None:
    viewers = viewers_of({"username": start + "reader-" + rest}, VIEWERS)
    assert viewers.keys() <= {"everyone", "reader"}
    if start:
        assert viewers.get("reader", []) in ([], [f"{start}reader-{rest}".removeprefix("reader-")])
    else:
        assert viewers.get("reader", [rest]) == [rest]


def request(path: str = "/v1/loans", **claims: object) -> Request:
    stated = {"sub": "s", **claims} if claims else None
    return Request(method="GET", path=path, query={}, headers={}, request_id="r", claims=stated)


SCOPED = Bubble(
    name="b", entities=(), sources=(), viewers=VIEWERS,
    scopes=(Scope("/v1", ("tidegate/api", "tidegate/all")), Scope("/v1/events", ("tidegate/events", "tidegate/all"))),
)  # fmt: skip


def test_a_caller_is_who_the_token_says() -> None:
    caller = identified(
        request(username="reader-1", client_id="page"), Bubble(name="b", entities=(), sources=(), viewers=VIEWERS)
    )
    assert (caller.subject, caller.client, caller.is_machine) == ("s", "page", False)
    assert caller.viewers == {"everyone": ["*"], "reader": ["1"]}
    assert identified(request(client_id="s"), SCOPED_TO_NOTHING).is_machine


SCOPED_TO_NOTHING = Bubble(name="b", entities=(), sources=())


@pytest.mark.parametrize("unidentified", ["", "the token has expired"])
def test_without_claims_nobody_is_let_in(unidentified: str) -> None:
    asked = msgspec.structs.replace(request(), unidentified=unidentified)
    with pytest.raises(Refused) as refused:
        identified(asked, SCOPED)
    assert refused.value.status == 401
    assert refused.value.headers["WWW-Authenticate"] == ('Bearer error="invalid_token"' if unidentified else "Bearer")
    assert unidentified in str(refused.value)


@pytest.mark.parametrize(
    ("path", "scope", "missing"),
    [
        ("/v1/loans", "tidegate/api", None),
        ("/v1/loans", "x tidegate/all", None),
        ("/v1/loans", "x tidegate/events", "tidegate/api tidegate/all"),
        ("/v1/loans", "", "tidegate/api tidegate/all"),
        ("/v1/events", "tidegate/api", "tidegate/events tidegate/all"),
        ("/v1/events", "tidegate/api tidegate/events", None),
        ("/v1/events/x", "tidegate/api", "tidegate/events tidegate/all"),
        ("/v1/eventsx", "tidegate/api", None),
        ("/other", "x", None),
    ],
)
def test_scopes_open_paths(path: str, scope: str, missing: str | None) -> None:
    asked = request(path, scope=scope)
    if missing is None:
        assert identified(asked, SCOPED).subject == "s"
    else:
        with pytest.raises(Refused) as refused:
            identified(asked, SCOPED)
        challenge = f'Bearer error="insufficient_scope", scope="{missing}"'
        assert (refused.value.status, refused.value.headers["WWW-Authenticate"]) == (403, challenge)


@given(
    st.dictionaries(
        st.sampled_from(["username", "cognito:groups", "scope"]), st.text() | st.lists(st.text()), min_size=1
    )
)
def test_viewers_can_always_be_encoded_and_are_never_empty(claims: dict[str, object]) -> None:
    viewers = viewers_of(claims, (*VIEWERS, Viewer("any", claim="username")))
    assert msgspec.json.decode(encode_viewers(viewers)) == viewers
    assert all(ids and all(ids) for ids in viewers.values())
    assert "\\u0000" not in encode_viewers(viewers)


@pytest.mark.parametrize(
    ("viewer", "words"),
    [
        (Viewer("staff", "cognito:groups"), "add many=True"),
        (Viewer("partner", "scope", prefix="x"), "add many=True"),
        (Viewer("reader", "username", prefix="reader-", many=True), "remove many=True"),
    ],
)
def test_a_claim_of_the_wrong_number_is_refused_at_start(viewer: Viewer, words: str) -> None:
    with pytest.raises(BubbleError, match=f"Viewer\\('{viewer.kind}'\\).*{words}"):
        check(Bubble(name="b", entities=(), sources=(), viewers=(viewer,)))


class Note(msgspec.Struct):
    text: str


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scopes": (Scope("/v2", ("x",)),)}, "a path of the API"),
        ({"scopes": (Scope("/v1/", ("x",)),)}, "a path of the API"),
        ({"scopes": (Scope("/v1", ()),)}, "at least one scope"),
        ({"scopes": (Scope("/v1", ('a" b',)),)}, "without spaces"),
        ({"inbound": (Inbound(event_type="tidegate.loan.upsert", data=Note),)}, "comes from back offices"),
        ({"inbound": (Inbound(event_type="note", data=Note),)}, "with dots"),
        ({"inbound": (Inbound(event_type="b.Note", data=Note),)}, "lower case"),
        ({"inbound": (Inbound(event_type="b.note", data=Note), Inbound(event_type="b.note", data=Note))}, "taken twice"),
        ({"inbound": (Inbound(event_type="b.note", data=cast("type[Note]", dict)),)}, "msgspec.Struct"),
        ({"inbound": (Inbound(event_type="b.note", data=Note, senders=("clerk",)),)}, "no kind of viewer"),
        ({"inbound": (Inbound(event_type="b.note", data=Note, senders=()),)}, "without senders"),
    ],
)  # fmt: skip
def test_a_wrong_edge_is_refused_at_start(change: dict[str, Any], words: str) -> None:
    with pytest.raises(BubbleError, match=words):
        check(msgspec.structs.replace(Bubble(name="b", entities=(), sources=()), **change))
