"""`python -m worker`: exit code 0 after a graceful stop, 1 for our own errors, 70 for a bug."""

from __future__ import annotations

import sys

from tidegate import lifecycle
from worker import app

if __name__ == "__main__":
    sys.exit(lifecycle.main(app.run))
