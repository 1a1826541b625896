"""Which answers say the same, for a majority vote (self-consistency, arXiv 2203.11171)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal

from premoe_gateway.search.order import Vote

_NUMBER = re.compile(r"[-+]?[0-9][0-9,]*(?:\.[0-9]+)?")
"""Reads a text once, whatever it is."""
_DIGITS = 100
"""What is longer is no number that somebody asked for."""


def last_number(text: str) -> Decimal | None:
    """The last number of a text, commas between digits left out; None where there is none."""
    found = _NUMBER.findall(text)
    if not found or len(found[-1]) > _DIGITS:
        return None
    return Decimal(found[-1].replace(",", ""))


def key_of(text: str, vote: Vote) -> str:
    """The same for answers that say the same: spaces and case aside, or by their last number where they have one."""
    number = last_number(text) if vote == "number" else None
    return " ".join(text.split()).casefold() if number is None else f"{number.normalize():f}"


def agreement(texts: Sequence[str], vote: Vote) -> list[float]:
    """For each text the share of all that say the same, in (0, 1]."""
    keys = [key_of(text, vote) for text in texts]
    counts = Counter(keys)
    return [counts[key] / len(keys) for key in keys]
