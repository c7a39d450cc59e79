"""Behind the edge: who does not send its key finds nothing, whatever the token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import pytest

from api.answer import Answer
from api.compact import Claims
from api.entry import Served, respond
from api.request import Request
from api.tokens import Verifier
from tidegate.settings import Secret


class Open:
    """Answers everybody."""

    async def answer(self, request: Request) -> Answer:
        return Answer(status=200, body="{}", headers={})


class Nobody:
    """A verifier that counts how often it was asked."""

    asked = 0

    async def claims(self, authorization: str | None) -> Claims | None:
        self.asked += 1
        return None


def request(headers: Mapping[str, str]) -> Request:
    return Request(method="GET", path="/v1/parcels", query={}, headers=dict(headers), claims=None, request_id="r")


@pytest.mark.parametrize(
    ("key", "headers", "status"),
    [
        (None, {}, 200),
        (Secret("k" * 40), {"x-tidegate-origin": "k" * 40}, 200),
        (Secret("k" * 40), {}, 404),
        (Secret("k" * 40), {"x-tidegate-origin": "k" * 39}, 404),
        (Secret("k" * 40), {"x-tidegate-origin": "ключ"}, 404),
    ],
)
async def test_the_key_opens(key: Secret | None, headers: dict[str, str], status: int) -> None:
    verifier = Nobody()
    answer = await respond(Served(Open(), cast(Verifier, verifier), origin_key=key), request(headers))
    assert answer.status == status
    assert verifier.asked == (1 if status == 200 else 0)
    assert "k" * 40 not in (answer.body or "")
