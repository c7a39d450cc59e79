"""The bubble of the worker's process tests."""

from __future__ import annotations

from tests.integration.worker_rows import ENTITIES
from tidegate.bubble import Bubble

bubble = Bubble(name="gadgets", entities=ENTITIES, sources=())
