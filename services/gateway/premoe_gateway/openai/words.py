"""Texts of request bodies."""

from __future__ import annotations

from typing import Annotated

from premoe_servicekit.texts import whole_text
from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError


def _text(value: object) -> object:
    if not isinstance(value, str):
        raise PydanticCustomError("text", "must be a string")
    return whole_text(value)


Text = Annotated[str, BeforeValidator(_text)]
