"""A process that holds one answer against a pattern or a schema of a stranger, and may be killed: python -m … < JSON.

Patterns run in a linear-time engine of bounded size, but long texts, recursive schemas and compilers have costs (and
stacks) of their own, and nothing that a request brings may stall or end the gateway. Reads one object from standard
input: ``schema`` and, unless only the schema is to be checked, ``text``, with ``json`` true where the text is JSON
itself. Writes ``{"fits": true}``, or ``{"refused": "why"}``.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any

CPU_S = 10
MEMORY_BYTES = 1 << 29
PATTERN_BYTES = 1 << 19
"""Of one compiled pattern."""


def main() -> None:
    """Entry point."""
    os.nice(10)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(json.dumps(verdict(json.load(sys.stdin))))


def verdict(asked: dict[str, Any]) -> dict[str, object]:
    """Whether the text fits the schema, or what is wrong with the schema, in one line."""
    from jsonschema_rs import ReferencingError, RegexOptions, ValidationError, validator_for

    try:
        options = RegexOptions(size_limit=PATTERN_BYTES, dfa_size_limit=2 * PATTERN_BYTES)
        # Offline: references stay within the schema.
        validator = validator_for(json.loads(asked["schema"]), pattern_options=options, offline=True)
    except (ValidationError, ReferencingError, ValueError) as error:
        return {"refused": " ".join(str(error).split())[:300]}
    text = asked.get("text")
    if text is None:
        return {"fits": True}
    try:
        return {"fits": validator.is_valid(json.loads(text) if asked["json"] else text)}
    except (ValueError, RecursionError):
        return {"fits": False}


if __name__ == "__main__":
    main()
