"""Verbs about one bubble: check, schema, migrate."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterator

import msgspec

from tidegate import bubble as bubbles
from tidegate import contract, migrate, settings
from tidegate.bubble import Bubble, CsvDrop, Destination, Env, Source
from tidegate.entity import EntityShape, describe
from tidegate.errors import Fatal
from tidegate.settings import Variable

Verbs = argparse._SubParsersAction  # argparse has no public name for what add_subparsers returns

_PROGRAMS = {
    "poller": ("poller.settings", "PollerSettings"),
    "worker": ("worker.settings", "WorkerSettings"),
    "api": ("api.settings", "ApiSettings"),
    "ingest": ("api.settings", "IngestSettings"),
    "user": ("api.settings", "UserSettings"),
}


def add_verbs(verbs: Verbs[argparse.ArgumentParser]) -> None:
    check = verbs.add_parser("check", help="validate a bubble and the environment, and say what will be done")
    _bubble_argument(check)
    check.add_argument(
        "--program", choices=tuple(_PROGRAMS), help="check the settings of this program too, and list them"
    )
    check.add_argument("--json", action="store_true", help="print one JSON object")
    check.set_defaults(run=run_check)

    schema = verbs.add_parser("schema", help="print the JSON Schema of the bubble's events")
    _bubble_argument(schema)
    schema.set_defaults(run=run_schema)

    migration = verbs.add_parser("migrate", help="bring the database to this release and this bubble")
    _bubble_argument(migration)
    migration.add_argument(
        "--plan", action="store_true", help="say what would be applied and what each step does to running workers"
    )
    migration.add_argument(
        "--expand", action="store_true", help="apply only what the previous release survives, leave the rest for later"
    )
    migration.add_argument("--allow-destructive", action="store_true", help="apply steps after which values are gone")
    migration.add_argument(
        "--allow-running", action="store_true", help="apply steps that need the previous release stopped while it runs"
    )
    migration.add_argument(
        "--patience-s",
        type=float,
        default=migrate.Limits().patience_s,
        help="how long a step is tried that gets no lock",
    )
    migration.add_argument("--generate", metavar="TITLE", help="write the bubble's next migration; needs no database")
    migration.add_argument(
        "--drop-and-add", action="store_true", help="with --generate: what goes and what comes is no rename"
    )
    migration.set_defaults(run=run_migrate)


def _bubble_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bubble", metavar="MODULE", default=os.environ.get("TIDEGATE_BUBBLE"), help="import path")


def _load(arguments: argparse.Namespace) -> Bubble:
    if not arguments.bubble:
        raise Fatal("no bubble named; pass --bubble package.module or set TIDEGATE_BUBBLE")
    return bubbles.load(arguments.bubble)


def run_check(arguments: argparse.Namespace) -> int:
    bubble = _load(arguments)
    missing = [env for env in bubble.environment if env.default is None and env.name not in os.environ]
    variables, faults = _program_settings(arguments.program)
    if arguments.json:
        answer = {
            "bubble": bubble.name,
            "entities": [msgspec.to_builtins(shape) for shape in bubble.shapes],
            "sources": {source.name: _source_line(source) for source in bubble.sources},
            "destinations": {each.name: _destination_line(each) for each in bubble.destinations},
            "missing_environment": [env.name for env in missing],
            "settings": [msgspec.to_builtins(variable) for variable in variables],
            "settings_faults": faults,
        }
        print(msgspec.json.encode(answer).decode())
    else:
        print("\n".join(_report(bubble, missing)))
        print("\n".join(_settings_lines(variables, faults)))
    return 1 if missing or faults else 0


def _program_settings(program: str | None) -> tuple[list[Variable], str]:
    """The variables of one program, and what is wrong with them here ("" for nothing)."""
    if program is None:
        return [], ""
    # By name, because the kernel imports none of the programs.
    module, name = _PROGRAMS[program]
    cls: type[msgspec.Struct] = getattr(importlib.import_module(module), name)
    try:
        settings.read(cls, os.environ)
    except Fatal as fault:
        return settings.describe(cls), str(fault)
    return settings.describe(cls), ""


def _settings_lines(variables: list[Variable], faults: str) -> Iterator[str]:
    for variable in variables:
        state = (
            "set" if os.environ.get(variable.name) else "MISSING" if variable.required else variable.default or "unset"
        )
        yield f"{variable.name} ({variable.kind}): {state} - {variable.help}"
    if faults:
        yield f"\n{faults}"


def _report(bubble: Bubble, missing: list[Env]) -> Iterator[str]:
    yield f"bubble {bubble.name}: {len(bubble.entities)} entities, {len(bubble.sources)} sources"
    for shape in bubble.shapes:
        yield from _entity_lines(shape)
    yield ""
    for source in bubble.sources:
        yield f"source {source.name}: {_source_line(source)}"
    yield ""
    for destination in bubble.destinations:
        yield f"destination {destination.name}: {_destination_line(destination)}"
    for viewer in bubble.viewers:
        claim = f"each value of the {viewer.claim!r} claim" if viewer.many else f"the whole {viewer.claim!r} claim"
        yield f"viewer {viewer.kind}: the rest of {claim}, if it starts with {viewer.prefix!r}"
    yield ""
    for env in bubble.environment:
        yield f"environment {env.name}: {_environment_state(env, missing)}"
    yield ""
    yield (
        "everything is in place"
        if not missing
        else f"{len(missing)} variables are missing; what needs them will not start"
    )


def _entity_lines(shape: EntityShape) -> Iterator[str]:
    yield f"\nentity {shape.name}: table {shape.table}, GET /v1/{shape.collection} and /v1/{shape.collection}/{{key}}"
    version = "observation only" if shape.version is None else shape.version.name
    yield f"  key {shape.key.name}, ordered by {version}"
    for reader in shape.readers:
        rows = f"rows whose {' or '.join(reader.fields)} is its id" if reader.fields else "every row"
        yield f"  {reader.kind} sees {rows}"


def _source_line(source: Source) -> str:
    feed = source.feed
    if isinstance(feed, CsvDrop):
        which = "newest CSV file, whole," if feed.holds == "everything" else "each CSV file of changes"
        what = f"{which} under {feed.prefix!r}"
    else:
        what = f"GET {feed.path} {'for changes' if feed.changes else 'in full'}"
    watermark = "" if source.watermark else ", says nothing of freshness"
    return (
        f"{what} every {source.poll_interval_s:g} s, full-key sweep every {source.sweep_interval_s:g} s, "
        f"translation {source.translation}{watermark}"
    )


def _destination_line(destination: Destination) -> str:
    names = ", ".join(describe(entity).name for entity in destination.entities) or "every entity"
    operations, causes = " and ".join(destination.operations), " or ".join(destination.causes)
    return f"POST to {destination.url.name}, each {operations} of {names}, when {causes}"


def _environment_state(env: Env, missing: list[Env]) -> str:
    if env in missing:
        return "MISSING"
    return "set" if env.name in os.environ else f"not set, {env.default!r} is used"


def run_schema(arguments: argparse.Namespace) -> int:
    print(msgspec.json.format(msgspec.json.encode(contract.event_contract(_load(arguments))), indent=2).decode())
    return 0


def run_migrate(arguments: argparse.Namespace) -> int:
    bubble = _load(arguments)
    folder = migrate.migrations_of(importlib.import_module(arguments.bubble))
    if arguments.generate:
        paths = migrate.generate(bubble, folder, arguments.generate, drop_and_add=arguments.drop_and_add)
        for path in paths:
            print(f"wrote {path}; review it")
        if not paths:
            print("the tables are those of the last migration already")
        return 0
    url = os.environ.get("TIDEGATE_DATABASE_URL")
    if not url:
        raise Fatal("TIDEGATE_DATABASE_URL is not set; give the address of the database as its owner")
    permission = migrate.Permission(
        destructive=arguments.allow_destructive, running=arguments.allow_running, expand_only=arguments.expand
    )
    if arguments.plan:
        return _show_plan(migrate.plan(url, bubble, folder), permission)
    steps = migrate.upgrade(url, bubble, folder, permission, migrate.Limits(patience_s=arguments.patience_s))
    for step in steps:
        print(f"applied {step.name}: {step.title}")
    if not steps:
        print("nothing to apply", file=sys.stderr)
    return 0


def _show_plan(found: migrate.Plan, permission: migrate.Permission) -> int:
    """Print it; 0 when it may be carried out as it is, else 1."""
    chosen = migrate.chosen(found.steps, permission)
    for step in found.steps:
        print(f"{'would apply' if step in chosen else 'would leave'} {step.name}: {step.title} [{step.judgement}]")
        for judged in step.statements:
            for finding in judged.findings:
                print(f"    {finding.hazard}: {finding.why}")
                print(f"        {' '.join(judged.statement.split())[:200]}")
    if not found.steps:
        print("nothing to apply", file=sys.stderr)
    reasons = list(migrate.refusals(found, permission))
    for reason in reasons:
        print(f"refused: {reason}", file=sys.stderr)
    return 1 if reasons else 0
