"""Builds and runs the image where Debian's buildah, podman and crun are, without a daemon and without a registry of images.

The base is a Debian with Python, made by mmdebstrap and handed to the Dockerfile as its BASE argument. Containers run in a
mount namespace of their own in which the cgroups are hidden, because a container in a container may not change them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
TOOLS = ("buildah", "podman", "crun", "mmdebstrap")

_BASE, _IMAGE = "localhost/python-base", "localhost/tidegate"
# Before a command: what it starts sees no cgroups.
_HIDDEN = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs tmpfs /sys/fs/cgroup && exec "$@"', "sh"]
_CERTIFICATES = Path("/etc/ssl/certs")
_WITH_PYTHON = "python3,python3-venv,python-is-python3,ca-certificates"
_LOCKED_DOWN = ("--read-only", "--read-only-tmpfs=false", "--tmpfs=/tmp:rw,size=64m", "--cap-drop=all",
                "--security-opt=no-new-privileges")  # fmt: skip


def why_not() -> str:
    """Why no image can be built and run here; nothing when one can."""
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"{', '.join(missing)} are missing: apt-get install buildah podman conmon crun mmdebstrap fuse-overlayfs"
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "it wants root"
    if subprocess.run([*_HIDDEN, "true"], check=False, capture_output=True).returncode != 0:
        return "nothing may be mounted here"
    return ""


class Engine:
    """`folder` keeps the images; whoever keeps the folder keeps the base, which takes longest."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store = (f"--root={folder}/store", f"--runroot={folder}/run", "--storage-driver=overlay")

    def build(self) -> None:
        """Make the base unless it is there, then the image."""
        listed = self._run("buildah", *self._store, "images", "--format={{.Name}}").stdout
        if _BASE not in listed:
            self._make_base()
        arguments = ["--layers=false", "--timestamp=0", f"--tag={_IMAGE}", f"--build-arg=BASE={_BASE}"]
        # What this machine trusts, the build trusts, too; nothing of it stays in the image.
        arguments.append(f"--volume={_CERTIFICATES}:{_CERTIFICATES}:ro")
        arguments += ["--env=PIP_CERT=/etc/ssl/certs/ca-certificates.crt"] if "PIP_CERT" in os.environ else []
        self._run("buildah", *self._store, "bud", "--isolation=chroot", *arguments, str(ROOT))

    def _make_base(self) -> None:
        archive = self._folder / "base.tar"
        self._run("mmdebstrap", "--variant=minbase", f"--include={_WITH_PYTHON}", "bookworm", str(archive))
        (self._folder / "Containerfile").write_text("FROM scratch\nADD base.tar /\n", encoding="utf-8")
        self._run("buildah", *self._store, "bud", "--layers=false", f"--tag={_BASE}", str(self._folder))
        archive.unlink()

    def command(self, *arguments: str, options: Sequence[str] = ()) -> list[str]:
        """The command line that runs the image, locked down as in production."""
        podman = ["podman", *self._store, "--cgroup-manager=cgroupfs", "run", "--rm", "--cgroups=disabled"]
        podman += ["--runtime=crun", "--network=host", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]
        podman += [*_LOCKED_DOWN, *options, _IMAGE, *arguments]
        return [*_HIDDEN, *podman]

    def run(self, *arguments: str, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        return self._run(*self.command(*arguments, options=options), check=False)

    def _run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(argv, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(argv[:3])} … ended with {done.returncode}: {done.stderr[-2000:]}")
        return done
