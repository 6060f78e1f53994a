"""``python -m kaito`` and the ``kaito`` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    _keep_rich_out_of_structlog()
    from kaito.cli import app

    app()


def _keep_rich_out_of_structlog() -> None:
    """Save 5 MB: structlog imports rich, if there is one, for tracebacks in colour.

    With None in its place the import fails as if rich were not installed; who needs rich for a
    table imports it later and gets it.
    """
    if "structlog" in sys.modules or "rich" in sys.modules:
        return  # too late to save anything
    sys.modules["rich"] = None  # type: ignore[assignment]  # what import makes of "not there"
    import structlog  # noqa: F401 - for its side effect

    del sys.modules["rich"]


if __name__ == "__main__":
    main()
