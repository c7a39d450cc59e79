"""docs/METRICS.md's tables, from tidegate/telemetry.py: `python -m tests.unit.metrics_page` writes them anew.

Names, labels and meanings are literals there and comments beside them, so the page is read from the source.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tidegate.emf import unit_of

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "METRICS.md"
SOURCE = ROOT / "tidegate" / "telemetry.py"
MARK = "<!-- From here on written by `python -m tests.unit.metrics_page`, from tidegate/telemetry.py. -->"

_KINDS = {"Counter": "counter", "Gauge": "gauge", "Histogram": "histogram"}
_NO_COMMENT = re.compile(r"(fmt:|noqa|type:)")
# "lease=…, counter=…: what it means"; only what has an ellipsis is a list of fields.
_FIELDS = re.compile(r"((?:with )?[`\w]+=(?:…|\[…\]).*?)(?:: (.*)|$)")


class Event(NamedTuple):
    name: str
    fields: str
    meaning: str


class Metric(NamedTuple):
    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


class Section(NamedTuple):
    title: str
    events: list[Event]
    metrics: list[Metric]


def sections(source: str) -> list[Section]:
    """What the module names, in its order. Raises ValueError for a metric whose arguments are not literals."""
    comments = {
        token.start[0]: (token.string.lstrip("# "), token.line.lstrip().startswith("#"))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and not _NO_COMMENT.match(token.string.lstrip("# "))
    }
    lines = source.splitlines()
    titles = {
        number: text.strip("- .")
        for number, (text, is_alone) in comments.items()
        if is_alone and lines[number - 1].startswith("#") and not lines[number - 2]
    }
    found: list[Section] = []
    for node in ast.parse(source).body:
        if not isinstance(node, ast.Assign):
            continue
        title = titles[max(number for number in titles if number <= node.lineno)]
        if not found or found[-1].title != title:
            found.append(Section(title, [], []))
        beside = range(node.lineno, (node.end_lineno or 0) + 1)
        texts = [text for number in beside for text, is_alone in [comments.get(number, ("", True))] if not is_alone]
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found[-1].events.append(_event(node.value.value, " ".join(texts)))
        elif (
            isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name) and node.value.func.id in _KINDS
        ):
            found[-1].metrics.append(_metric(node.value.func.id, node.value))
    return [section for section in found if section.events or section.metrics]


def _event(name: str, comment: str) -> Event:
    if match := _FIELDS.match(comment):
        return Event(name, match[1], match[2] or "")
    return Event(name, "", comment)


def _metric(maker: str, call: ast.Call) -> Metric:
    name, meaning, *labels = (ast.literal_eval(each) for each in call.args)
    return Metric(name, _KINDS[maker], tuple(labels[0]) if labels else (), meaning)


def tables(source: str) -> Iterator[str]:
    """The page's lines below the mark."""
    for section in sections(source):
        yield f"\n## {section.title[0].upper()}{section.title[1:]}\n"
        if section.metrics:
            yield "| metric | kind | labels | CloudWatch unit | how to read it |"
            yield "|---|---|---|---|---|"
            for metric in section.metrics:
                unit = unit_of(metric.name, metric.kind)
                yield _row(f"`{metric.name}`", metric.kind, ", ".join(metric.labels), unit, metric.meaning)
        if section.metrics and section.events:
            yield ""
        if section.events:
            yield "| log event | fields | how to read it |"
            yield "|---|---|---|"
            for event in section.events:
                yield _row(f"`{event.name}`", event.fields, event.meaning)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def page(prose: str) -> str:
    """The whole page: what is written by hand, the mark, the tables."""
    by_hand, _, _ = prose.partition(MARK)
    return by_hand + MARK + "\n" + "\n".join(tables(SOURCE.read_text(encoding="utf-8"))) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
