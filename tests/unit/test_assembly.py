"""A process of controllers and the signals it hears."""

from __future__ import annotations

import asyncio
import signal
import sys

import pytest

# Stands for a manager: it is told to stop, and then takes its time.
PROGRAM = """
import asyncio
from kaito.assembly import _stop_on_signals

async def busy():
    while True:
        await asyncio.sleep(0)

async def main():
    stop = _stop_on_signals()
    tasks = [asyncio.get_running_loop().create_task(busy()) for _ in range(10)]
    print("ready", flush=True)
    await stop.wait()
    print("stopping", flush=True)
    await asyncio.sleep(0 if {is_quick} else 3600)
    for task in tasks:
        task.cancel()

{run}
"""
PLAIN = "asyncio.run(main())"
UVLOOP = "import uvloop; uvloop.run(main())"


async def started(*, is_quick: bool, run: str) -> asyncio.subprocess.Process:
    program = PROGRAM.format(is_quick=is_quick, run=run)
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, stderr=None
    )


async def said(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(20):
        return (await process.stdout.readline()).decode().strip()


@pytest.mark.parametrize("run", [PLAIN, UVLOOP], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=str)
async def test_the_first_signal_stops_in_order_and_the_second_ends_at_once(signum, run):
    """M6, P14: under load too, and on both loops."""
    process = await started(is_quick=False, run=run)
    assert await said(process) == "ready"
    process.send_signal(signum)
    assert await said(process) == "stopping"
    process.send_signal(signum)
    async with asyncio.timeout(20):
        assert await process.wait() == -signum


@pytest.mark.parametrize("run", [PLAIN, UVLOOP], ids=["asyncio", "uvloop"])
async def test_a_stop_by_one_signal_is_a_clean_end(run):
    """M6, P14: no KeyboardInterrupt surfaces in a callback."""
    process = await started(is_quick=True, run=run)
    assert await said(process) == "ready"
    process.send_signal(signal.SIGINT)
    assert await said(process) == "stopping"
    async with asyncio.timeout(20):
        assert await process.wait() == 0
