"""Tasks about letters: `rev` (write them backwards) and `sort` (alphabetical order)."""

import string

from premoe_local.tasks.draw import Draw
from premoe_local.tasks.example import Generator, Payload


def _letters(draw: Draw, low: int, high: int) -> list[str]:
    return [draw.pick(string.ascii_lowercase) for _ in range(draw.between(low, high))]


def _rev(draw: Draw) -> Payload:
    letters = _letters(draw, 4, 7)
    text = " ".join(letters)
    return Payload(text, {"x": text}, " ".join(reversed(letters)))


def _sort(draw: Draw) -> Payload:
    letters = _letters(draw, 4, 6)
    text = " ".join(letters)
    return Payload(text, {"x": text}, " ".join(sorted(letters)))


REV = Generator(
    _rev,
    seen=(
        "Write backwards the list {x}",
        "Letters in reverse order of {x}",
        "Flip this sequence: {x}",
        "{x} -- now the other way round.",
        "Spell {x} back to front.",
        "Start at the end of {x} and walk to the front.",
        "Last letter first, please: {x}",
        "Reverse the letters: {x}",
        "Read {x} from right to left.",
        "Mirror the row {x}",
        "Turn around: {x}",
    ),
    unseen=(
        "Put the letters {x} in reverse.",
        "Give {x} backwards.",
        "What is {x} read from the end?",
        "Reverse this row of letters: {x}",
        "List {x} from last to first.",
    ),
)

SORT = Generator(
    _sort,
    seen=(
        "Sort the letters: {x}",
        "Put in alphabet order {x}",
        "Arrange {x} from a to z.",
        "Order these alphabetically: {x}",
        "{x} -- sorted, please.",
        "Rank the letters {x} by the alphabet.",
    ),
    unseen=("Give {x} in alphabetical order.", "Which order do {x} have in the alphabet?", "Sort this row: {x}"),
)
