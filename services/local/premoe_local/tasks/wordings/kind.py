"""The kinds of wording, and which of them training, choices and reports may see: fixed before anything was measured."""

from dataclasses import dataclass
from typing import Literal

from premoe_local.tasks.example import Split

Role = Literal["train", "validation", "held-out"]

SPLIT_OF_ROLE: dict[Role, Split] = {"train": "train", "validation": "validation", "held-out": "test"}
"""Payloads of a kind come from this split, unless another is asked for."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to word any request."""

    family: str
    """What sort of change it is: `casing`, `follow`, `frame`, `language`, `reworded`, `system`, `turns`."""
    name: str
    role: Role
    """Who may see it: the fixture's training, the choice of a method, or reports alone."""

    def __str__(self) -> str:
        return f"{self.family}.{self.name}"


def _kinds(family: str, train: str, validation: str, held_out: str) -> list[Kind]:
    roles: tuple[tuple[Role, str], ...] = (("train", train), ("validation", validation), ("held-out", held_out))
    return [Kind(family, name, role) for role, names in roles for name in names.split()]


KINDS: dict[str, Kind] = {
    str(kind): kind
    for kind in (
        *_kinds("reworded", "first", "second", "third"),
        *_kinds("frame", "polite hurried homework chatty labelled", "letter doubtful", "story formal quoted"),
        *_kinds("casing", "lower upper", "title", "alternating bare"),
        *_kinds("language", "german french spanish", "italian", "dutch portuguese"),
        *_kinds("system", "brief role rules", "company", "persona policy"),
        *_kinds("turns", "same other", "greeting", "two-others unknown"),
        *_kinds("follow", "and", "same", "about"),
    )
}
"""Every kind by its name, `family.name`."""


def kinds(role: Role | None = None, family: str | None = None) -> list[str]:
    """Names of the kinds of a role, or family, or both."""
    return [
        name
        for name, kind in KINDS.items()
        if (role is None or kind.role == role) and (family is None or kind.family == family)
    ]
