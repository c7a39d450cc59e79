"""`python -m tests.deploy.observability.write`: dashboards and Prometheus rules, anew from their lists."""

from __future__ import annotations

from tests.deploy.observability import boards


def main() -> None:
    for path, text in boards.everything().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
