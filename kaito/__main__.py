"""``python -m kaito`` and the ``kaito`` command."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    from kaito.cli import app

    app()


if __name__ == "__main__":
    main()
