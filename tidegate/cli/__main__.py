"""`python -m tidegate.cli …`, for an image without console scripts."""

import sys

from tidegate.cli import main

sys.exit(main())
