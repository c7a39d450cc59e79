"""A table that is there is used as it is; one that is missing is made, and waited for."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError

from tidegate.aws import dynamo, ensure_table
from tidegate.errors import Fatal, Transient

DEFINITION = {"TableName": "cursors", "BillingMode": "PAY_PER_REQUEST"}


class Tables:
    """`statuses` are told one after the other, the last for ever; "" for no such table."""

    def __init__(self, *statuses: str, creating: str = "") -> None:
        self.statuses = list(statuses)
        self.creating = creating
        self.created: list[dict[str, Any]] = []

    async def describe_table(self, **request: Any) -> dict[str, Any]:
        assert request == {"TableName": "cursors"}
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if not status:
            raise _error("ResourceNotFoundException")
        return {"Table": {"TableStatus": status}}

    async def update_table(self, **request: Any) -> dict[str, Any]:
        raise AssertionError("no index was asked for")

    async def create_table(self, **request: Any) -> dict[str, Any]:
        self.created.append(request)
        if self.creating:
            raise _error(self.creating)
        return {}


def _error(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "because"}}, "SomeCall")


@pytest.fixture(autouse=True)
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamo, "_READY_WAIT_S", 0)


async def test_a_table_that_exists_needs_no_permission_to_create() -> None:
    tables = Tables("ACTIVE", creating="AccessDeniedException")
    await ensure_table(tables, DEFINITION)
    assert tables.created == []


@pytest.mark.parametrize("creating", ["", "ResourceInUseException"])
async def test_a_missing_table_is_made_and_waited_for(creating: str) -> None:
    tables = Tables("", "", "CREATING", "ACTIVE", creating=creating)
    await ensure_table(tables, DEFINITION)
    assert tables.created == [DEFINITION]
    assert tables.statuses == ["ACTIVE"]


async def test_a_missing_table_that_may_not_be_made_is_fatal() -> None:
    with pytest.raises(Fatal, match="create the table cursors"):
        await ensure_table(Tables("", creating="AccessDeniedException"), DEFINITION)


async def test_a_table_that_never_comes_is_fatal() -> None:
    with pytest.raises(Fatal, match="did not become active"):
        await ensure_table(Tables("CREATING"), DEFINITION)


INDEXED = {
    "TableName": "leases",
    "AttributeDefinitions": [{"AttributeName": "owner", "AttributeType": "S"}],
    "GlobalSecondaryIndexes": [{"IndexName": "by-owner", "KeySchema": [], "Projection": {}}],
}


class Indexed:
    """A table without an index, which takes `looks` looks to be made once it was asked for."""

    def __init__(self, *, looks: int = 1, updating: str = "", **described: Any) -> None:
        self.looks = looks
        self.updating = updating
        self.described = described
        self.asked: list[dict[str, Any]] = []

    async def describe_table(self, **_: Any) -> dict[str, Any]:
        if not self.asked:
            return {"Table": {"TableStatus": "ACTIVE", **self.described}}
        self.looks -= 1
        status = "CREATING" if self.looks > 0 else "ACTIVE"
        indexes = [{"IndexName": "other", "IndexStatus": "ACTIVE"}, {"IndexName": "by-owner", "IndexStatus": status}]
        return {"Table": {"TableStatus": "UPDATING", "GlobalSecondaryIndexes": indexes, **self.described}}

    async def create_table(self, **_: Any) -> dict[str, Any]:
        raise AssertionError("it is there")

    async def update_table(self, **request: Any) -> dict[str, Any]:
        self.asked.append(request)
        if self.updating:
            raise _error(self.updating)
        return {}


@pytest.mark.parametrize("updating", ["", "ResourceInUseException"])
async def test_a_missing_index_is_added_and_waited_for(updating: str) -> None:
    tables = Indexed(looks=3, updating=updating, BillingModeSummary={"BillingMode": "PAY_PER_REQUEST"})
    await ensure_table(tables, INDEXED)
    [asked] = tables.asked
    assert asked["GlobalSecondaryIndexUpdates"] == [{"Create": INDEXED["GlobalSecondaryIndexes"][0]}]
    assert tables.looks == 0


async def test_an_index_gets_the_capacity_of_its_table() -> None:
    tables = Indexed(
        ProvisionedThroughput={"ReadCapacityUnits": 10, "WriteCapacityUnits": 7, "NumberOfDecreasesToday": 1}
    )
    await ensure_table(tables, INDEXED)
    create = tables.asked[0]["GlobalSecondaryIndexUpdates"][0]["Create"]
    assert create["ProvisionedThroughput"] == {"ReadCapacityUnits": 10, "WriteCapacityUnits": 7}


async def test_an_index_may_take_long_and_may_be_forbidden() -> None:
    on_demand: dict[str, Any] = {"BillingModeSummary": {"BillingMode": "PAY_PER_REQUEST"}}
    with pytest.raises(Transient, match="an index of the table leases is still being made"):
        await ensure_table(Indexed(looks=1_000, **on_demand), INDEXED)
    with pytest.raises(Fatal, match="could not add the index by-owner to the table leases"):
        await ensure_table(Indexed(updating="AccessDeniedException", **on_demand), INDEXED)
