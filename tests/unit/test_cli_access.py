"""`tidegate access` and `tidegate events` without a database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.fakes.issuer import claims, signed
from tidegate.cli import main

PARCELS = ["--bubble", "examples.parcels.bubble"]


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TIDEGATE_DATABASE_URL", "TIDEGATE_BUBBLE", "TIDEGATE_USER_TABLE"):
        monkeypatch.delenv(name, raising=False)


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(["access", "show", *PARCELS, "--json", *arguments]) == 0
    return msgspec.json.decode(capsys.readouterr().out)


def test_viewers_claims_and_a_token_name_the_same_caller(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(f"Bearer {signed(claims(username='customer-1001'))}\n")
    answers = [
        shown(capsys, "--as", who) for who in ("customer:1001", '{"username": "customer-1001", "x": 1}', f"@{token}")
    ]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0]["viewers"] == {"customer": ["1001"], "everyone": ["*"]}
    parcel, office, _ = answers[0]["entities"]
    assert [(way["kind"], way["ids"]) for way in parcel["ways"]] == [
        ("customer", ["1001"]),
        ("office", []),
        ("partner", []),
    ]
    assert (office["entity"], office["rows"], office["ways"][0]["ids"]) == ("office", None, ["*"])
    assert "viewer_ids('customer')" in parcel["policies"][0]


def test_several_viewers_and_one_entity(capsys: pytest.CaptureFixture[str]) -> None:
    answer = shown(capsys, "--as", "office:102", "--as", "office:101", "--entity", "office")
    assert answer["viewers"]["office"] == ["101", "102"]
    assert [each["entity"] for each in answer["entities"]] == ["office"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["access", "show", "--as", "customer:1"], "no bubble named"),
        (["access", "show", *PARCELS, "--as", "nobody:1"], "names no viewer"),
        (["access", "show", *PARCELS, "--as", "customer"], "names no viewer"),
        (["access", "show", *PARCELS, "--as", "{"], "holds no claims"),
        (["access", "show", *PARCELS, "--as", "[]"], "names no viewer"),
        (["access", "show", *PARCELS, "--as", "@no-such-file"], "holds no claims"),
        (["access", "show", *PARCELS, "--as", "customer:1", "--entity", "x"], "no entity 'x'"),
        (["access", "forget", "s", "--yes"], "neither TIDEGATE_USER_TABLE nor"),
        (["events", "validate", "x"], "no bubble named"),
        (["events", "validate", "no-such-file", *PARCELS], "cannot be read"),
    ],
)
def test_what_is_missing_is_one_clear_text(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    assert text in capsys.readouterr().err


OFFICE = {
    "specversion": "1.0", "id": "e1", "source": "offices", "type": "tidegate.office.upsert", "subject": "101",
    "time": "2026-11-21T06:00:00Z", "tidegateversion": "0.1.1.1.1", "tidegatecause": "live",
    "tidegateobserved": "2026-11-21T06:00:01Z", "datacontenttype": "application/json",
    "data": {"number": "101", "name": "Centre", "city": "Bern", "postal_code": "3000", "kind": "counter",
             "changed_at": "2026-11-21T06:00:00Z"},
}  # fmt: skip
WISH = {"specversion": "1.0", "id": "w", "type": "parcels.delivery_wish", "data": {"parcel": "P1", "place": "door"}}
MARK = {
    "specversion": "1.0",
    "id": "m",
    "source": "offices",
    "type": "tidegate.watermark",
    "time": "2026-11-21T06:00:00Z",
}


def validated(capsys: pytest.CaptureFixture[str], path: Path, text: bytes) -> tuple[int, list[Any]]:
    path.write_bytes(text)
    code = main(["events", "validate", str(path), *PARCELS, "--json"])
    return code, [msgspec.json.decode(line) for line in capsys.readouterr().out.splitlines()]


def test_good_events_in_each_form(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    events: list[dict[str, Any]] = [OFFICE, WISH, MARK, {**OFFICE, "type": "tidegate.office.delete", "data": None}]
    encoded = [msgspec.json.encode({k: v for k, v in event.items() if v is not None}) for event in events]
    for text in (b"[" + b",".join(encoded) + b"]", b"\n".join(encoded) + b"\n\n"):
        code, verdicts = validated(capsys, tmp_path / "events", text)
        assert (code, [each["place"] for each in verdicts]) == (0, [1, 2, 3, 4]), verdicts
        assert verdicts[0]["partition_key"] == "office:101"
    assert validated(capsys, tmp_path / "events", encoded[0])[0] == 0


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        ({**OFFICE, "subject": "102"}, "invalid"),
        ({**OFFICE, "tidegateversion": "1.2"}, "undecodable"),
        ({**OFFICE, "type": "tidegate.parsel.upsert"}, "unknown_entity"),
        ({**OFFICE, "data": {"number": "101"}}, "invalid"),
        ({**OFFICE, "time": None}, "undecodable"),
        ({**WISH, "data": {}}, "invalid"),
        ({**WISH, "type": "parcels.nothing"}, "unknown_type"),
        ({**WISH, "filler": "x" * 1_100_000}, "too_large"),
        ({"specversion": "1.0"}, "undecodable"),
        ("text", "undecodable"),
    ],
)
def test_bad_events_are_named(event: Any, reason: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    good, bad = msgspec.json.encode(WISH), msgspec.json.encode(event)
    code, verdicts = validated(capsys, tmp_path / "events", good + b"\n" + bad + b"\n{nonsense\n")
    assert code == 1
    assert [each.get("reason", "") for each in verdicts] == ["", reason, "undecodable"]


def test_a_file_without_events(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for text, words in ((b"", "no event"), (b"[", "no JSON array")):
        (tmp_path / "events").write_bytes(text)
        assert main(["events", "validate", str(tmp_path / "events"), *PARCELS]) == 1
        assert words in capsys.readouterr().err
