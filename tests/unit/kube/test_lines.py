from __future__ import annotations

import pytest

from kaito.kube.lines import LINE_LIMIT, LineBuffer

TEXT = '{"type":"ADDED","object":{"x":"zwölf €"}}\n{"a":1}\n'.encode()


@pytest.mark.parametrize("size", [1, 2, 3, 7, len(TEXT)])
def test_lines_are_whole_however_the_bytes_are_split(size: int) -> None:
    """W4: inside a UTF-8 sequence too."""
    buffer = LineBuffer()
    for start in range(0, len(TEXT), size):
        buffer.feed(TEXT[start : start + size])
    assert list(buffer.lines) == TEXT.splitlines()


def test_an_open_line_is_held_back() -> None:
    """W6"""
    buffer = LineBuffer()
    buffer.feed(b'{"a":1}\n{"b":')
    assert list(buffer.lines) == [b'{"a":1}']


def test_a_line_of_32_mib_is_a_line_and_its_size_is_told_while_it_grows() -> None:
    """W4, W5"""
    buffer = LineBuffer()
    piece = b"x" * 65_536
    sizes = [buffer.feed(piece) for _ in range(LINE_LIMIT // len(piece))]
    assert max(sizes) == LINE_LIMIT
    assert buffer.feed(b"\n") == LINE_LIMIT
    assert len(buffer.lines[0]) == LINE_LIMIT
    assert buffer.feed(b"short") == 5
