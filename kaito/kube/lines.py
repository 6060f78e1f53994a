"""Bytes of a watch to whole lines. No I/O: chunks come in as they arrive, split anywhere."""

from __future__ import annotations

from collections import deque
from typing import Final

LINE_LIMIT: Final = 32 * 1024 * 1024
"""Far over the largest object (etcd takes 1.5 MiB), and an end to a stream without newlines."""


class LineBuffer:
    """Complete lines wait in ``lines``, without their newline; the last, open one is held back."""

    def __init__(self) -> None:
        self.lines: deque[bytes] = deque()
        self._open = bytearray()  # grows in place: joining bytes per chunk would be quadratic

    def feed(self, chunk: bytes) -> int:
        """Take a chunk. Returns the size of the line it went on with, for the caller's limit."""
        if not self._open and chunk.find(b"\n") + 1 == len(chunk) > 0:
            # A line to itself, as the API server sends each: no need to copy it twice.
            self.lines.append(chunk[:-1])
            return len(chunk) - 1
        first, *others = chunk.split(b"\n")
        self._open += first
        size = len(self._open)
        if others:
            self.lines.append(bytes(self._open))
            self.lines.extend(others[:-1])
            self._open = bytearray(others[-1])
        return size
