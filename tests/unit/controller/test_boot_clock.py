"""E6: the clock by which leadership is judged goes on while the machine is suspended."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from typing import Final

import pytest

from kaito.assembly import assembled
from kaito.clock import SystemClock
from kaito.kube.config import ClusterConfig

SUSPENDED: Final = 100_000
# In a time namespace the kernel moves CLOCK_BOOTTIME alone: as a suspension would.
NAMESPACE: Final = ("unshare", "--map-root-user", "--time", f"--boottime={SUSPENDED}")
PROGRAM: Final = """
import time
from kaito.clock import SystemClock
print(SystemClock().monotonic() - time.clock_gettime(time.CLOCK_MONOTONIC))
"""


def seconds_ahead(*inside: str) -> float:
    program = (*inside, sys.executable, "-c", PROGRAM)
    return float(subprocess.run(program, check=True, capture_output=True, timeout=60).stdout)


def has_time_namespaces() -> bool:
    if shutil.which(NAMESPACE[0]) is None:
        return False
    return subprocess.run((*NAMESPACE, "true"), capture_output=True).returncode == 0


def test_seconds_of_a_suspension_count() -> None:
    """E6: CLOCK_BOOTTIME, not CLOCK_MONOTONIC."""
    if not has_time_namespaces():
        pytest.skip("needs a kernel and rights that allow time namespaces")
    assert seconds_ahead(*NAMESPACE) - seconds_ahead() == pytest.approx(SUSPENDED, abs=1)


async def test_the_elector_of_a_process_judges_by_that_clock() -> None:
    """E6: and so do its client and its caches."""
    async with assembled(
        ClusterConfig(host="http://127.0.0.1:1"), name="unseen", election_namespace="default"
    ) as parts:
        assert parts.elector is not None
        assert type(parts.elector.clock) is SystemClock
        assert parts.elector.clock is parts.clock
        await asyncio.sleep(0)
