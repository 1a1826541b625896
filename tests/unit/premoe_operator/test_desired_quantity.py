"""Kubernetes quantities."""

from __future__ import annotations

from fractions import Fraction

import pytest
from premoe_operator.children import parse_quantity
from premoe_operator.children.quantity import parse_bytes

from premoe_runtime.formats.errors import InvalidInput


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("4", 4),
        ("1500m", Fraction(3, 2)),
        ("0.1", Fraction(1, 10)),
        ("2k", 2000),
        ("2Ki", 2048),
        ("1.5Gi", 3 << 29),
        ("3T", 3 * 10**12),
        ("1Ti", 1 << 40),
    ],
)
def test_quantities_are_exact(text: str, value: Fraction | int) -> None:
    assert parse_quantity(text) == value


def test_bytes_are_rounded_up() -> None:
    assert (parse_bytes("1500m"), parse_bytes("0.001Ki"), parse_bytes("1Mi")) == (2, 2, 1 << 20)


@pytest.mark.parametrize("text", ["", "Gi", "-1", "1e3", "1 Gi", "1GiB", "1.", ".5"])
def test_what_the_schema_refuses_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="is no quantity; write it as 500m, 4 or 8Gi"):
        parse_quantity(text)
