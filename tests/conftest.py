"""What all tests share."""

from __future__ import annotations

import asyncio

# pytest-asyncio asks for the thread's current loop, and Python 3.11 makes one for whoever asks; nobody closes it,
# and warnings are errors here. Where there is no loop and no default, none is made.
asyncio.set_event_loop(None)
