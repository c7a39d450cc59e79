"""A one-off task on Amazon ECS: start it, show its log while it runs, end with its exit code.

What it needs to know stands in the stacks' exports (subnets, security group); everything else follows from the
deployment's name, as k8s_or_ecs/ecs/ops.yaml has it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

from tidegate import aws
from tidegate.errors import Fatal, Superseded, TidegateError

_LOOK_S = 2.0
_CONTAINER = "tidegate"
_GROUPS = {"operator": "OpsGroup", "owner": "OpsGroup", "worker": "WorkerGroup", "poller": "PollerGroup"}
_LOGS = {"operator": "ops", "owner": "ops", "worker": "worker", "poller": "poller"}


def run(arguments: argparse.Namespace) -> int:
    """Raises Fatal when the task could not be started, was stopped from outside, or took too long."""
    if not arguments.name:
        raise Fatal("no deployment named; pass --name NAME or set TIDEGATE_OPS_NAME")
    if arguments.region:
        os.environ["AWS_REGION"] = arguments.region
    return asyncio.run(_run(arguments))


async def _run(arguments: argparse.Namespace) -> int:
    async with AsyncExitStack() as stack:
        services = ("cloudformation", "ecs", "logs")
        stacks, ecs, logs = [await stack.enter_async_context(aws.client(service)) for service in services]
        exports = await exports_of(stacks, arguments.name)
        task = OneOff(ecs, logs, arguments.name, arguments.role)
        return await task.run(exports, arguments.verb, arguments.timeout_s, print)


async def exports_of(client: Any, name: str) -> dict[str, str]:
    """What the deployment's stacks export, without their prefix. Raises Fatal when there is nothing."""
    found: dict[str, str] = {}
    token: dict[str, str] = {}
    while True:
        with aws.aws_errors("list the stacks' exports"):
            page = await client.list_exports(**token)
        found |= {
            each["Name"].removeprefix(f"{name}-"): each["Value"]
            for each in page["Exports"]
            if each["Name"].startswith(f"{name}-")
        }
        if "NextToken" not in page:
            break
        token = {"NextToken": page["NextToken"]}
    if "PrivateSubnets" not in found:
        raise Fatal(f"there is no deployment {name} in this account and region: its network stack exports nothing")
    return found


class OneOff:
    """One task of one deployment. The clients are aiobotocore's of ECS and CloudWatch Logs."""

    def __init__(self, ecs: Any, logs: Any, name: str, role: str, look_s: float = _LOOK_S) -> None:
        self._ecs = ecs
        self._logs = logs
        self._name = name
        self._role = role
        self._look_s = look_s
        self._token: dict[str, str] = {}

    async def run(
        self, exports: dict[str, str], verb: Sequence[str], timeout_s: float, say: Callable[[str], object]
    ) -> int:
        """The verb's exit code. Raises Fatal."""
        arn = await self._start(exports, verb)
        print(f"started {arn.rpartition('/')[2]} as {self._role}", file=sys.stderr)
        try:
            async with asyncio.timeout(timeout_s):
                task = await self._ended(arn, say)
        except (asyncio.CancelledError, TimeoutError) as why:
            await self._stop(arn)
            if isinstance(why, asyncio.CancelledError):
                raise
            raise Fatal(f"the task took longer than {timeout_s:g} s and was stopped") from None
        return self._exit_code(task)

    async def _start(self, exports: dict[str, str], verb: Sequence[str]) -> str:
        group = _GROUPS[self._role]
        if group not in exports:
            raise Fatal(f"{self._name} exports no {group}; deploy its network stack anew")
        with aws.aws_errors(f"start a task of {self._name}-{self._role}"):
            reply = await self._ecs.run_task(
                cluster=self._name,
                taskDefinition=f"{self._name}-{self._role}",
                launchType="FARGATE",
                count=1,
                startedBy="tidegate ops run",
                networkConfiguration={
                    "awsvpcConfiguration": {
                        "subnets": exports["PrivateSubnets"].split(","),
                        "securityGroups": [exports[group]],
                        "assignPublicIp": "DISABLED",
                    }
                },
                overrides={"containerOverrides": [{"name": _CONTAINER, "command": ["tidegate.cli", *verb]}]},
            )
        if not reply["tasks"]:
            reasons = ", ".join(failure.get("reason", "?") for failure in reply.get("failures", ()))
            raise Fatal(f"ECS did not start the task: {reasons}")
        arn: str = reply["tasks"][0]["taskArn"]
        return arn

    async def _ended(self, arn: str, say: Callable[[str], object]) -> dict[str, Any]:
        """Wait for the end, telling its lines meanwhile; those that were written last come after it."""
        while True:
            with aws.aws_errors("look at the task"):
                described = await self._ecs.describe_tasks(cluster=self._name, tasks=[arn])
            if not described["tasks"]:
                raise Fatal("ECS does not know the task any more; its log has what it did")
            task: dict[str, Any] = described["tasks"][0]
            is_over = task["lastStatus"] == "STOPPED"
            await self._tell(arn, say)
            if is_over:
                return task
            await asyncio.sleep(self._look_s)

    async def _tell(self, arn: str, say: Callable[[str], object]) -> None:
        while True:
            try:
                with aws.aws_errors("read the task's log", superseded={"ResourceNotFoundException"}):
                    page = await self._logs.get_log_events(
                        logGroupName=f"/tidegate/{self._name}/{_LOGS[self._role]}",
                        logStreamName=f"{self._role}/{_CONTAINER}/{arn.rpartition('/')[2]}",
                        startFromHead=True,
                        **self._token,
                    )
            except Superseded:
                # It has not written anything yet.
                return
            for event in page["events"]:
                say(event["message"])
            token = {"nextToken": page["nextForwardToken"]}
            if token == self._token or not page["events"]:
                self._token = token
                return
            self._token = token

    async def _stop(self, arn: str) -> None:
        try:
            with aws.aws_errors("stop the task"):
                await self._ecs.stop_task(cluster=self._name, task=arn, reason="tidegate ops run gave it up")
        except TidegateError as error:
            print(f"tidegate: the task may still run: {error}", file=sys.stderr)

    def _exit_code(self, task: dict[str, Any]) -> int:
        codes = [each.get("exitCode") for each in task["containers"] if each["name"] == _CONTAINER]
        if not codes or codes[0] is None:
            reasons = [task.get("stoppedReason", ""), *(each.get("reason", "") for each in task["containers"])]
            raise Fatal(f"the task ended without running the verb: {'; '.join(filter(None, reasons))}")
        return int(codes[0])
