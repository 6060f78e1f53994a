from __future__ import annotations

from decimal import Decimal

import pytest

from kaito.catalog.quantities import GIB, gib, parse_quantity, whole


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", "0"),
        (7, "7"),
        ("50Gi", str(50 * 2**30)),
        ("1Ki", "1024"),
        ("1Ei", str(2**60)),
        ("1.5Gi", str(3 * 2**29)),
        ("100m", "0.1"),
        ("1u", "0.000001"),
        ("3n", "0.000000003"),
        ("2k", "2000"),
        ("400G", "400000000000"),
        ("1E", "1000000000000000000"),
        ("1E3", "1000"),
        ("1e3", "1000"),
        ("12e-1", "1.2"),
        ("-5", "-5"),
        ("+.5", "0.5"),
        ("5.", "5"),
        ("9223372036854775807", "9223372036854775807"),
    ],
)
def test_quantities_are_read_exactly(text: str | int, value: str) -> None:
    assert parse_quantity(text) == Decimal(value)


@pytest.mark.parametrize(
    "text",
    ["", "Gi", "1 Gi", "1gi", "1K", "1GB", "e3", "1e", "1.2.3", ".", "\u0661", "1e999", "\n1"],
)
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"quantity|range"):
        parse_quantity(text)


def test_whole_units_are_rounded_up_as_the_api_server_does() -> None:
    assert whole("100m") == 1
    assert whole("1.5Gi") == 3 * 2**29
    assert whole("2") == 2


def test_gib_are_binary() -> None:
    assert gib("50Gi") == 50
    assert gib(GIB // 2) == Decimal("0.5")
