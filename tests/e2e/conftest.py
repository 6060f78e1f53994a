from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.driver import Sandbox, start_sandbox, stop_sandbox


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    directory = tmp_path_factory.mktemp("sandbox")
    box = start_sandbox(directory)
    try:
        box.script()
        yield box
    finally:
        stop_sandbox(directory)
