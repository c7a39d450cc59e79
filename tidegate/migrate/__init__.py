"""Bring a database to the schema of this release and this bubble, and write a bubble's next migration.

Two alembic histories share one `env.py`: tidegate's own operational tables (`tidegate/migrations/versions`) and
the bubble's entity tables (the folder `migrations` beside the bubble). Row-level security and the rule which fields a
live row must have are not part of a history: both are derived from the entities and set anew after every upgrade.

It is made to run while the previous release works: see docs/decisions/0013-migrations.md. `judge` ★ says what each
statement does to it, `run` gives locks up early and tries again, `generate` writes expansion and contraction apart.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from tidegate.errors import Fatal
from tidegate.migrate.generate import generate
from tidegate.migrate.judge import SAFE, Hazard
from tidegate.migrate.plan import Step
from tidegate.migrate.run import Limits
from tidegate.migrate.upgrade import Permission, Plan, chosen, plan, refusals, upgrade

__all__ = [
    "SAFE", "Hazard", "Limits", "Permission", "Plan", "Step", "chosen", "generate", "migrations_of", "plan", "refusals",
    "upgrade",
]  # fmt: skip


def migrations_of(module: ModuleType) -> Path:
    """The folder that holds the migrations of a bubble's module."""
    if module.__file__ is None:
        raise Fatal(f"{module.__name__}: it has no file, so there is no place for its migrations")
    return Path(module.__file__).parent / "migrations"
