"""What a process has used, as the kernel says."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class Usage:
    """``cpu_seconds``: user and system time of all threads. ``peak_mib``: highest resident set."""

    cpu_seconds: float
    peak_mib: float

    @classmethod
    def of(cls, pid: int) -> Self:
        """Since the process started. The program must be the process itself, without children."""
        proc = Path(f"/proc/{pid}")
        fields = (proc / "stat").read_text(encoding="ascii").rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        peak = re.search(r"^VmHWM:\s+(\d+) kB", (proc / "status").read_text(), re.MULTILINE)
        assert peak is not None
        return cls(ticks / os.sysconf("SC_CLK_TCK"), int(peak[1]) / 1024)
