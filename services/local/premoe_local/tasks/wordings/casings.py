"""Letters of an instruction in other cases; payloads keep theirs, since answers depend on them."""

import re
import string
from collections.abc import Callable


def _outside_fields(change: Callable[[str], str]) -> Callable[[str], str]:
    """The change of a wording everywhere but in its placeholders."""

    def changed(wording: str) -> str:
        parts = []
        for text, field, _, _ in string.Formatter().parse(wording):
            parts.append(change(text).replace("{", "{{").replace("}", "}}"))
            if field is not None:
                parts.append(f"{{{field}}}")
        return "".join(parts)

    return changed


def _title(text: str) -> str:
    return re.sub(r"[^\W\d_][\w']*", lambda word: word.group().capitalize(), text)


def _alternating(text: str) -> str:
    return "".join(letter.upper() if place % 2 else letter.lower() for place, letter in enumerate(text))


def _bare(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter not in ".,:;?!'\"")


CASINGS: dict[str, Callable[[str], str]] = {
    "lower": _outside_fields(str.lower),
    "upper": _outside_fields(str.upper),
    "title": _outside_fields(_title),
    "alternating": _outside_fields(_alternating),
    "bare": _outside_fields(_bare),
}
"""Changes of a wording by name of their kind."""
