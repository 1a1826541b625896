"""Families of prompts that are no stored task: some beside one (`near`), some far from all.

A family is drawn from templates whose `$words` are filled in (`strangers.json`, beside this module, written for this
project). Which families training, choices and reports may see is fixed there by name.
"""

import json
import string
from dataclasses import dataclass
from pathlib import Path

from premoe_local.tasks.draw import Draw
from premoe_local.tasks.wordings.kind import Role


@dataclass(frozen=True, slots=True)
class Stranger:
    """One family."""

    name: str
    role: Role
    near: str
    """The stored task that it resembles; "" for none."""
    templates: tuple[str, ...]

    def prompt(self, draw: Draw) -> str:
        """One prompt of the family."""
        return string.Template(draw.pick(self.templates)).substitute(_Words(draw))


class _Words(dict[str, str]):
    """Draws a word when a template asks for it: `noun1` and `noun2` are two nouns, `noun1` is itself again."""

    def __init__(self, draw: Draw) -> None:
        super().__init__()
        self._draw = draw

    def __missing__(self, key: str) -> str:
        kind = key.rstrip(string.digits)
        if kind in _NUMBERS:
            word = str(self._draw.between(*_NUMBERS[kind]))
        elif kind == "letters":
            word = " ".join(self._draw.pick(string.ascii_lowercase) for _ in range(self._draw.between(4, 7)))
        elif kind == "bits":
            word = "".join(self._draw.pick("01") for _ in range(8))
        elif kind == "hex":
            word = f"{self._draw.below(2**32):08x}"
        else:
            word = self._draw.pick(_VOCABULARY[kind])
        self[key] = word
        return word


_NUMBERS = {"n": (2, 99), "big": (100, 999), "year": (1, 3999), "digit": (1, 9)}

_STORED = json.loads(Path(__file__).with_name("strangers.json").read_text(encoding="utf-8"))
_VOCABULARY: dict[str, list[str]] = _STORED["words"]

STRANGERS: dict[str, Stranger] = {
    name: Stranger(name, family["role"], family["near"], tuple(family["templates"]))
    for name, family in _STORED["families"].items()
}
"""Every family by name."""


def strangers(role: Role | None = None) -> list[str]:
    """Names of the families of a role, or of all."""
    return [name for name, family in STRANGERS.items() if role is None or family.role == role]
