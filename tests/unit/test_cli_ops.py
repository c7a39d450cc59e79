"""`tidegate ops run` against an ECS that is told what to answer: what it asks for, what it shows, what it ends with."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tidegate.cli.ops_run import OneOff, exports_of
from tidegate.errors import Fatal

EXPORTS = {"PrivateSubnets": "subnet-1,subnet-2", "OpsGroup": "sg-ops", "WorkerGroup": "sg-worker"}
ARN = "arn:aws:ecs:eu-central-1:1:task/parcels/abc"


class Ecs:
    """A task that runs for some looks and then stops with `end`."""

    def __init__(self, end: dict[str, Any], looks: int = 2) -> None:
        self.end = end
        self.looks = looks
        self.asked: dict[str, Any] = {}
        self.stopped: list[str] = []

    async def run_task(self, **request: Any) -> dict[str, Any]:
        self.asked = request
        return {"tasks": [{"taskArn": ARN}], "failures": []}

    async def describe_tasks(self, **request: Any) -> dict[str, Any]:
        self.looks -= 1
        return {"tasks": [self.end if self.looks < 0 else {"lastStatus": "RUNNING", "containers": []}]}

    async def stop_task(self, **request: Any) -> dict[str, Any]:
        self.stopped.append(request["task"])
        return {}


class Logs:
    """A stream that does not exist at first and then grows by one line a look."""

    def __init__(self, *lines: str) -> None:
        self.lines = lines
        self.names: set[str] = set()
        self.looks = 0

    async def get_log_events(self, **request: Any) -> dict[str, Any]:
        self.names.add(request["logGroupName"] + " " + request["logStreamName"])
        self.looks += 1
        if self.looks == 1:
            raise ClientError({"Error": {"Code": "ResourceNotFoundException"}}, "GetLogEvents")
        begin = int(request.get("nextToken", "0"))
        shown = self.lines[begin : begin + 1]
        return {"events": [{"message": line} for line in shown], "nextForwardToken": str(begin + len(shown))}


def stopped(exit_code: int | None, reason: str = "") -> dict[str, Any]:
    container: dict[str, Any] = {"name": "tidegate"}
    if exit_code is not None:
        container["exitCode"] = exit_code
    return {"lastStatus": "STOPPED", "stoppedReason": reason, "containers": [container]}


@pytest.mark.asyncio
@pytest.mark.looptime
async def test_the_verb_s_lines_and_exit_code_come_back() -> None:
    ecs, logs, said = Ecs(stopped(3)), Logs("first", "second", "last"), list[str]()
    code = await OneOff(ecs, logs, "parcels", "owner").run(EXPORTS, ["migrate", "--plan"], 60, said.append)
    assert (code, said) == (3, ["first", "second", "last"])
    assert logs.names == {"/tidegate/parcels/ops owner/tidegate/abc"}
    assert ecs.asked["taskDefinition"] == "parcels-owner"
    (override,) = ecs.asked["overrides"]["containerOverrides"]
    assert override == {"name": "tidegate", "command": ["tidegate.cli", "migrate", "--plan"]}
    network = ecs.asked["networkConfiguration"]["awsvpcConfiguration"]
    assert network == {"subnets": ["subnet-1", "subnet-2"], "securityGroups": ["sg-ops"], "assignPublicIp": "DISABLED"}
    assert ecs.stopped == []


@pytest.mark.asyncio
@pytest.mark.looptime
async def test_a_worker_s_verb_runs_with_the_worker_s_rights() -> None:
    ecs, logs = Ecs(stopped(0)), Logs()
    assert await OneOff(ecs, logs, "parcels", "worker").run(EXPORTS, ["erase"], 60, print) == 0
    assert ecs.asked["networkConfiguration"]["awsvpcConfiguration"]["securityGroups"] == ["sg-worker"]
    assert logs.names == {"/tidegate/parcels/worker worker/tidegate/abc"}


@pytest.mark.asyncio
@pytest.mark.looptime
async def test_a_task_that_never_ran_says_why() -> None:
    one = OneOff(Ecs(stopped(None, "CannotPullContainerError: no such image")), Logs(), "parcels", "operator")
    with pytest.raises(Fatal, match="no such image"):
        await one.run(EXPORTS, ["leases", "list"], 60, print)


@pytest.mark.asyncio
@pytest.mark.looptime
async def test_one_that_takes_too_long_is_stopped() -> None:
    ecs = Ecs(stopped(0), looks=1000)
    with pytest.raises(Fatal, match="longer than 30 s"):
        await OneOff(ecs, Logs(), "parcels", "operator").run(EXPORTS, ["status"], 30, print)
    assert ecs.stopped == [ARN]


@pytest.mark.asyncio
@pytest.mark.looptime
async def test_ctrl_c_stops_the_task() -> None:
    ecs = Ecs(stopped(0), looks=1000)
    running = asyncio.create_task(OneOff(ecs, Logs(), "parcels", "operator").run(EXPORTS, ["status"], 600, print))
    await asyncio.sleep(5)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ecs.stopped == [ARN]


class Stacks:
    async def list_exports(self, **request: str) -> dict[str, Any]:
        if "NextToken" in request:
            return {"Exports": [{"Name": "parcels-OpsGroup", "Value": "sg-1"}]}
        found = [{"Name": "parcels-PrivateSubnets", "Value": "subnet-1"}, {"Name": "flights-OpsGroup", "Value": "sg-2"}]
        return {"Exports": found, "NextToken": "more"}


async def test_exports_of_the_deployment_and_of_no_other() -> None:
    assert await exports_of(Stacks(), "parcels") == {"PrivateSubnets": "subnet-1", "OpsGroup": "sg-1"}
    with pytest.raises(Fatal, match="no deployment ships"):
        await exports_of(Stacks(), "ships")
