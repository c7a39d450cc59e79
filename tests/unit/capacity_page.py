"""The figures of docs/CAPACITY.md. `python -m tests.unit.capacity_page` writes them anew."""

from __future__ import annotations

from pathlib import Path

from tidegate import estimate
from tidegate.estimate import Assumptions, Load, ProfileName
from tidegate.prices import PriceTable

PAGE = Path(__file__).parent.parent.parent / "docs" / "CAPACITY.md"
MARK = "<!-- From here on written by `python -m tests.unit.capacity_page`, from tidegate/estimate.py. -->\n"
RUNS: tuple[tuple[Load, ProfileName], ...] = (
    (Load(events_s=20, size=2_000), "small"),
    (Load(events_s=500, size=2_000), "small"),
    (Load(events_s=10_000, size=2_000, entities=10, rows=20_000_000, reads_s=200), "large"),
)


def generated() -> str:
    """Everything after the mark."""
    parts = ["\n## Three sizes\n"]
    for load, profile in RUNS:
        command = (
            f"tidegate estimate --events-per-second {load.events_s:g} --size {load.size} --entities {load.entities} "
            f"--rows {load.rows} --reads-per-second {load.reads_s:g} --profile {profile} --brief"
        )
        text = "\n".join(estimate.report(estimate.estimate(load, profile)))
        parts.append(f"\n```\n$ {command}\n{text}\n```\n")
    parts.append(
        "\n## What the figures rest on\n\n```\n" + "\n".join(estimate.notes(Assumptions(), PriceTable())) + "\n```\n"
    )
    return "".join(parts)


def main() -> None:
    head = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    PAGE.write_text(head + MARK + generated(), encoding="utf-8")


if __name__ == "__main__":
    main()
