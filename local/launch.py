"""The last step before a child program runs: die with the parent, and give up being root.  (stdlib only)

    python -I local/launch.py --signal 15 [--user 65534] -- argv…

A small program of its own rather than a `preexec_fn`, which may dead-lock in a process that has threads. On
Linux the child gets `--signal` when its parent dies, even by SIGKILL, so a killed demo leaves no orphans.
PostgreSQL refuses to run as root; `--user` runs it under another user id. Such a user may be barred from the
data folder's parents (a home folder is often 0700), so where Linux allows it the child keeps the right to pass
through folders, and no other right of root.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

if sys.platform != "win32":
    import pwd

_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAPABILITY_VERSION_3 = 0x20080522
# Either lets a process enter any folder; containers usually keep only the first.
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2


def command(argv: list[str], *, death_signal: int, user: int | None = None) -> list[str]:
    """The argv that runs `argv` through this program."""
    as_user = [] if user is None else ["--user", str(user)]
    return [sys.executable, "-I", __file__, "--signal", str(int(death_signal)), *as_user, "--", *argv]


def _become(libc: ctypes.CDLL, user: int, group: int) -> None:
    libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setgid(group)
    os.setuid(user)
    for capability in (_CAP_DAC_READ_SEARCH, _CAP_DAC_OVERRIDE):
        mask = 1 << capability
        header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
        wanted = struct.pack("=6I", mask, mask, mask, 0, 0, 0)
        if libc.capset(header, wanted) == 0:
            libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0)
            return


def main(arguments: list[str]) -> None:
    split = arguments.index("--")
    options = dict(zip(arguments[:split:2], arguments[1:split:2], strict=True))
    argv = arguments[split + 1 :]
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    if "--user" in options:
        user = int(options["--user"])
        group = pwd.getpwuid(user).pw_gid
        if libc is not None:
            _become(libc, user, group)
        else:
            os.setgroups([])
            os.setgid(group)
            os.setuid(user)
    if libc is not None:
        # After the change of user, which clears it.
        libc.prctl(_PR_SET_PDEATHSIG, int(options["--signal"]), 0, 0, 0)
        if os.getppid() != parent:
            sys.exit(1)
    os.execvp(argv[0], argv)  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    main(sys.argv[1:])
