"""Every test here fails if it writes to what a cache handed out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.mutation import MutationDetector, watched_for_mutations


@pytest.fixture(autouse=True)
def mutations() -> Iterator[MutationDetector]:
    """Facts S2."""
    yield from watched_for_mutations()
