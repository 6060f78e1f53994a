"""The real control plane of the component tests: one a session, started by the first that asks."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kaito.clock import SystemClock

if TYPE_CHECKING:
    from kaito.kube.client import KubeClient
    from kaito.sandbox.controlplane import ControlPlane


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """Started in the main thread: the programs die with the thread that forked them."""
    from kaito.sandbox.binaries import ensure
    from kaito.sandbox.controlplane import ControlPlane

    folder = Path(tempfile.mkdtemp(prefix="kaito-test-"))
    plane = ControlPlane(folder, binaries=ensure(os.environ, progress=print), audit=True)
    # A loop of its own, never made current: pytest-asyncio's loops are left alone.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(plane.start())
        yield plane
        runner.run(plane.stop())
    shutil.rmtree(folder)


@pytest.fixture
async def real_kube(control_plane: ControlPlane) -> AsyncIterator[KubeClient]:
    """A client of the real API server, as its administrator."""
    from kaito.kube.client import connect
    from kaito.kube.config import from_kubeconfig

    config = await from_kubeconfig(control_plane.kubeconfig)
    client = await connect(config, clock=SystemClock(), component="tests")
    yield client
    await client.close()
