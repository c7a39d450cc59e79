"""`python -m poller` for which the back offices' time of day is what a file says: the test of a quiet window writes it."""

from __future__ import annotations

import os
import sys
from datetime import datetime
from pathlib import Path

from poller.__main__ import main
from poller.gate import Gate

CLOCK = "CLOCK_FILE"


def now() -> datetime:
    return datetime.fromisoformat(Path(os.environ[CLOCK]).read_text())


if __name__ == "__main__":
    Gate.__init__.__kwdefaults__ = {**(Gate.__init__.__kwdefaults__ or {}), "now": now}
    sys.exit(main())
