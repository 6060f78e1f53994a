"""``make bench``: measure, write JSON to ``bench/results/``, print a table.

Numbers are of this machine and this run; nothing here fails on a figure.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import idle, queue_cost

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Run every measure."""
    measures = [*queue_cost.measure(), *idle.measure()]
    RESULTS.mkdir(exist_ok=True)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    report = {
        "when": stamp,
        "machine": {"python": platform.python_version(), "system": platform.platform()},
        "measures": [m.__dict__ for m in measures],
    }
    path = RESULTS / f"{stamp}.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    table = Table("MEASURE", "VALUE", "UNIT", "BAR", box=None)
    for m in measures:
        table.add_row(m.name, f"{m.value:.2f}", m.unit, m.bar)
    console = Console()
    console.print(table)
    console.print(f"[dim]{path}[/]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
