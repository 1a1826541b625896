"""Task `json`: extract one field of a small JSON record."""

import json

from premoe_local.tasks.draw import Draw
from premoe_local.tasks.example import Generator, Payload

_NAMES = [
    "anna",
    "bob",
    "carl",
    "dina",
    "erik",
    "fred",
    "gina",
    "hugo",
    "iris",
    "jack",
    "kate",
    "liam",
    "mona",
    "nils",
    "olga",
    "paul",
    "rita",
    "sven",
    "tina",
    "vera",
]
_CITIES = ["oslo", "rome", "lima", "cairo", "paris", "tokyo", "quito", "delhi", "milan", "perth"]
_COLORS = ["red", "blue", "green", "black", "white", "pink", "gold", "gray"]


def _json(draw: Draw) -> Payload:
    values: dict[str, str | int] = {
        "name": draw.pick(_NAMES),
        "city": draw.pick(_CITIES),
        "age": draw.between(10, 99),
        "id": draw.between(1000, 9999),
        "color": draw.pick(_COLORS),
        "friend": draw.pick(_NAMES),
    }
    record = json.dumps({key: values[key] for key in draw.sample(list(values), 3)})
    wanted = draw.pick(list(json.loads(record)))
    return Payload(f"{record} {wanted}", {"r": record, "k": wanted}, str(values[wanted]))


JSON = Generator(
    _json,
    seen=(
        "{r}\nget {k}",
        "{r} Which value has the key {k}?",
        "Read {k} from {r}",
        "Extract the field {k}: {r}",
        "The record is {r}. Print its {k}.",
        "{r} -> {k}",
        "Parse {r} and show {k}.",
        "{r}\nfield {k}?",
        "Given {r}, return {k}.",
        "{r}\nWhat does {k} say?",
        "Look up {k} in this object: {r}",
    ),
    unseen=(
        "{r}\nshow the field {k}",
        "From {r} take {k}.",
        "Which {k} is in {r}",
        "Here is an object: {r}. Return the value of {k}.",
        "{r}\nvalue of {k}?",
    ),
)
