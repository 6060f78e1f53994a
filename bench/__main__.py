"""``make bench``: measure, write JSON to ``bench/results/``, print a table.

``python -m bench [NAME...]`` runs the named modules, without names all of ``MODULES``. Each runs in
a process of its own, as its heap and its threads would change what the next one measures. Numbers
are of this machine and this run: a bar that is not met is shown, and nothing fails on it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from bench.measure import Measure, measures_of

RESULTS: Final = Path(__file__).parent / "results"
MODULES: Final = (
    "queue_cost",
    "pipeline",
    "latency",
    "loop_watch",
    "side_by_side",
    "first_sync",
    "election",
    "idle",
)
ON_DEMAND: Final = ("soak",)
"""Only by name, as they take long: ``make soak``."""


def main(names: list[str]) -> int:
    """Run them; 2 for a name there is not, 1 if one could not measure."""
    if unknown := set(names) - {*MODULES, *ON_DEMAND}:
        known = ", ".join((*MODULES, *ON_DEMAND))
        print(f"no bench called {', '.join(sorted(unknown))}; there are {known}", file=sys.stderr)
        return 2
    console = Console()
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    report: dict[str, Any] = {"when": stamp, "machine": machine(), "measures": [], "failures": {}}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{stamp}.json"
    for name in names or MODULES:
        console.print(f"[dim]bench.{name} ...[/]")
        try:
            measures = in_own_process(name)
        except Exception as err:  # noqa: BLE001 - the others are still to be measured
            traceback.print_exception(err)
            report["failures"][name] = repr(err)
        else:
            report["measures"] += [{"module": name, **entry.as_json()} for entry in measures]
            console.print(table_of(measures))
        # Written after each, so that an interrupt keeps what there is.
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    console.print(f"[dim]{path}[/]")
    return 1 if report["failures"] else 0


def in_own_process(name: str) -> list[Measure]:
    """What ``bench.<name>`` yields."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as pool:
        return pool.submit(measures_of, name).result()


def table_of(measures: list[Measure]) -> Table:
    """One row a measure; the last column says whether the bar is met."""
    table = Table("MEASURE", "MEDIAN", "UNIT", "SPREAD", "RUNS", "BAR", "MET", box=None)
    for entry in measures:
        table.add_row(
            entry.name,
            f"{entry.value:,.2f}",
            entry.unit,
            "" if entry.spread is None else f"{entry.spread:,.2f}",
            str(len(entry.runs) or 1),
            entry.bar,
            {None: "", True: "[green]yes[/]", False: "[red]no[/]"}[entry.is_met],
        )
    return table


def machine() -> dict[str, Any]:
    """What the numbers are of."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
