"""Kubernetes quantities."""

from __future__ import annotations

import math
import re
from fractions import Fraction

from premoe_runtime.formats.errors import InvalidInput

_PATTERN = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|k|Ki|M|Mi|G|Gi|T|Ti)?")
_UNITS = {
    "m": Fraction(1, 1000),
    "k": Fraction(10**3),
    "M": Fraction(10**6),
    "G": Fraction(10**9),
    "T": Fraction(10**12),
    "Ki": Fraction(2**10),
    "Mi": Fraction(2**20),
    "Gi": Fraction(2**30),
    "Ti": Fraction(2**40),
}


def parse_quantity(text: str) -> Fraction:
    """``"1500m"`` is 3/2, ``"2Ki"`` 2048. Raises InvalidInput for anything that the CRD's pattern refuses."""
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise InvalidInput(f"{text!r} is no quantity; write it as 500m, 4 or 8Gi", reason="QUANTITY_INVALID")
    return Fraction(match[1]) * _UNITS.get(match[2], Fraction(1))


def parse_bytes(text: str) -> int:
    """A quantity of bytes, rounded up as Kubernetes does."""
    return math.ceil(parse_quantity(text))
