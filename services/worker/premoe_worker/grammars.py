"""What an answer was asked to look like, as a grammar for the engine."""

from __future__ import annotations

import json

from premoe_runtime.engines.grammar_check import check_grammar
from premoe_runtime.formats.errors import InvalidInput
from premoe_worker.domain import AnswerFormat

MAX_SCHEMA_BYTES = 1 << 16
_WHITESPACE = r"[\x20\x0A\x0D\x09]{0,20}"
"""Between two tokens of JSON. Without a bound a model that likes spaces never comes to an end."""


def format_grammar(wanted: AnswerFormat) -> str:
    """The grammar of ``response_format``. Takes a while. Raises InvalidInput (RESPONSE_FORMAT_INVALID)."""
    try:
        grammar = json.dumps({"grammars": [{"json_schema": read_schema(wanted.schema, strict=wanted.strict)}]})
        check_grammar(grammar)
    except InvalidInput as error:
        raise InvalidInput(f"response_format: the schema cannot be used: {error}", reason=_REFUSED) from error
    return grammar


_REFUSED = "RESPONSE_FORMAT_INVALID"


def read_schema(schema: str, *, strict: bool) -> dict[str, object]:
    """A client's schema, with what the compiler is to make of it. Raises InvalidInput."""
    if len(schema.encode()) > MAX_SCHEMA_BYTES:
        raise InvalidInput(f"it is longer than {MAX_SCHEMA_BYTES} bytes")
    try:
        document = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"it is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidInput("it must be an object")
    # The client's own options are overwritten: they would loosen what is promised.
    options = {"whitespace_pattern": _WHITESPACE, "lenient": not strict, "coerce_one_of": not strict}
    return {**document, "x-guidance": options}
