"""Claims → viewers: a token names exactly those that its issuer wrote into it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.access import Unidentified, encode_viewers, viewers_of
from tidegate.bubble import Bubble, Viewer, check
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
        ({"username": "ann", "cognito:groups": "[evening staff-north staff-south]"}, {"staff": ["north", "south"]}),
        ({"cognito:groups": ["staff-b", "staff-a", "staff-a"]}, {"staff": ["a", "b"]}),
        ({"cognito:groups": "staff-north"}, {"staff": ["north"]}),
        ({"scope": "openid tidegate/partner-7 other/partner-8"}, {"partner": ["7"]}),
        ({"username": "reader-", "cognito:groups": "[]"}, {}),
        ({"username": "x-reader-1"}, {}),
        ({"cognito:groups": None, "username": 17}, {}),
        ({"cognito:groups": ["staff-\0", "staff-\ud800", "staff-é"]}, {"staff": ["é"]}),
        ({"username": "reader-a b"}, {"reader": ["a b"]}),
        ({"username": "reader-1]"}, {"reader": ["1]"]}),
        ({"cognito:groups": "[]"}, {}),
        ({"cognito:groups": "[staff-a  staff-b ]"}, {"staff": ["a", "b"]}),
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
        "[[staff-1]]",
        "[x [staff-1]]",
        "[staff-1",
        "x staff-1]",
        "[staff-1] x",
        "[evening\u2003staff-1]",
        "[evening\tstaff-1]",
        "[evening\nstaff-1]",
        "[evening,staff-1]",
        "[staff-]",
        ["[staff-1]"],
        ["x staff-1"],
        ["[x staff-1]"],
        [["staff-1"]],
        [1],
        {"staff-1": 1},
    ],
)
def test_a_group_s_name_makes_no_other_group(groups: object) -> None:
    """Names with a plain space aside, which API Gateway's text does not tell from two groups; see `viewers_of`."""
    assert viewers_of({"cognito:groups": groups}, VIEWERS) == {"everyone": ["*"]}


@given(st.text(), st.text(min_size=1))
def test_one_value_names_exactly_its_rest(start: str, rest: str) -> None:
    viewers = viewers_of({"username": start + "reader-" + rest}, VIEWERS)
    assert viewers.keys() <= {"everyone", "reader"}
    if start:
        assert viewers.get("reader", []) in ([], [f"{start}reader-{rest}".removeprefix("reader-")])
    else:
        assert viewers.get("reader", [rest]) == [rest]


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters=" []\0"), min_size=1), max_size=4))
def test_the_gateway_s_text_says_what_the_list_says(groups: list[str]) -> None:
    groups = [*groups, *(f"staff-{group}" for group in groups)]
    as_list, as_text = ({"cognito:groups": form} for form in (groups, f"[{' '.join(groups)}]"))
    assert viewers_of({"n": "n", **as_text}, VIEWERS) == viewers_of({"n": "n", **as_list}, VIEWERS)


@pytest.mark.parametrize("claims", [None, {}, {"username": "reader-1", "token_use": "id"}])
def test_without_usable_claims_nobody_is_let_in(claims: Mapping[str, object] | None) -> None:
    with pytest.raises(Unidentified):
        viewers_of(claims, VIEWERS)


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
