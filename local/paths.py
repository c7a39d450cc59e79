"""Where the static files of the screens are: in the source tree, or inside an installed wheel."""

from pathlib import Path


def web(name: str) -> Path:
    """The folder `web/<name>` with its static files.

    A wheel carries `web/` as `local/web/`; in the source tree it lies at the root of the repository.
    Raises FileNotFoundError when neither is there.
    """
    here = Path(__file__).resolve().parent
    for root in (here / "web", here.parent / "web"):
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(f"web/{name} is neither beside nor inside the package `local`")
