"""Tasks about numbers: `add` (worked steps), `sub`, `roman` and `units`."""

from premoe_local.tasks.draw import Draw
from premoe_local.tasks.example import Generator, Payload

_NUMERALS = (
    (1000, "M"),
    (900, "CM"),
    (500, "D"),
    (400, "CD"),
    (100, "C"),
    (90, "XC"),
    (50, "L"),
    (40, "XL"),
    (10, "X"),
    (9, "IX"),
    (5, "V"),
    (4, "IV"),
    (1, "I"),
)

_UNITS = (
    ("km", "m", 1000),
    ("kg", "g", 1000),
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("m", "cm", 100),
    ("days", "hours", 24),
)


def worked_sum(a: int, b: int) -> str:
    """The addition column by column, lowest digit first, then the sum."""
    carry = 0
    steps = []
    for x, y in zip(reversed(str(a)), reversed(str(b)), strict=True):
        column = int(x) + int(y) + carry
        steps.append(f"{x}+{y}+{carry}={column:02d}")
        carry = column // 10
    return ";".join(steps) + f" ={a + b}"


def roman_numeral(number: int) -> str:
    """The Roman numeral of a number from 1 to 3999."""
    result = ""
    for value, letters in _NUMERALS:
        result += letters * (number // value)
        number %= value
    return result


def _add(draw: Draw) -> Payload:
    a, b = draw.between(100, 999), draw.between(100, 999)
    return Payload(f"{a}+{b}", {"a": str(a), "b": str(b)}, worked_sum(a, b))


def _sub(draw: Draw) -> Payload:
    a, b = draw.between(100, 9999), draw.between(100, 9999)
    return Payload(f"{a}-{b}", {"a": str(a), "b": str(b)}, "")


def _roman(draw: Draw) -> Payload:
    number = draw.between(1, 3999)
    return Payload(str(number), {"n": str(number)}, " ".join(roman_numeral(number)))


def _units(draw: Draw) -> Payload:
    source, target, factor = draw.pick(_UNITS)
    count = draw.between(2, 40)
    fields = {"n": str(count), "u": source, "v": target}
    return Payload(f"{count} {source} {target}", fields, str(count * factor))


ADD = Generator(
    _add,
    seen=(
        "Compute {a} + {b} step by step.",
        "Add {a} and {b}, carrying as you go.",
        "{a} + {b} = ? Show your work.",
        "I have {a} coins and find {b} more. How many coins in all?",
        "Work out {a} plus {b} with the carry.",
        "A shelf holds {a} books; we put {b} more on it. Count them all.",
        "To {a} add {b} and write each column.",
        "The first part is {a}, the second {b}. Give the sum of the parts.",
        "What is {a} plus {b}? Show the steps.",
        "Sum {a} and {b} digit by digit.",
        "Find the total of {a} and {b}.",
        "Increase {a} by {b}.",
    ),
    unseen=(
        "Add up the numbers {a} and {b}.",
        "How much do {a} and {b} make together?",
        "Give the sum {a}+{b} with every column.",
        "There were {a} birds and {b} more came. How many birds in all?",
        "Do the addition {a} + {b} in steps.",
    ),
)

SUB = Generator(
    _sub,
    seen=(
        "Compute {a} - {b} step by step.",
        "What is {a} minus {b}? Show the steps.",
        "Take {b} away from {a}.",
        "Subtract {b} from {a}, borrowing as you go.",
        "{a} - {b} = ? Show your work.",
        "I have {a} coins and lose {b}. How many coins are left?",
    ),
    unseen=(
        "Find the difference of {a} and {b}.",
        "Decrease {a} by {b}.",
        "Do the subtraction {a} - {b} in steps.",
        "There were {a} birds and {b} flew away. How many birds stayed?",
    ),
)

ROMAN = Generator(
    _roman,
    seen=(
        "Write {n} as a Roman numeral.",
        "Roman numeral for the year {n}?",
        "{n} in Roman letters, please.",
        "Carve the year {n} on the temple in Latin letters.",
        "Spell {n} with the letters I, V, X, L, C, D and M.",
        "Turn the number {n} into a Roman numeral.",
        "Caesar counts to {n}. How does he note it?",
        "How did the Romans write {n}?",
        "Convert {n} to Roman numerals.",
        "Which Roman numeral stands for {n}?",
        "Chapter {n}: give its Roman number.",
    ),
    unseen=(
        "Give the Roman numeral of {n}.",
        "What would a Roman write for {n}?",
        "The clock shows {n} in Roman numerals. Write it.",
        "Express the year {n} in Roman letters.",
        "In ancient Rome, how was {n} written?",
    ),
)

UNITS = Generator(
    _units,
    seen=(
        "Convert {n} {u} to {v}.",
        "How many {v} are in {n} {u}?",
        "Express {n} {u} in {v}.",
        "{n} {u} is how many {v}?",
        "Change {n} {u} into {v}.",
        "Give {n} {u} as {v}.",
    ),
    unseen=("Tell me {n} {u} in {v}.", "What is {n} {u}, measured in {v}?", "Turn {n} {u} into {v}."),
)
