"""JSON documents out of object storage: checked by pydantic, and whatever is wrong with one is a single line."""

from __future__ import annotations

import re
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from premoe_runtime.formats.errors import CorruptData
from premoe_runtime.formats.safetensors import shown

_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,127}")
ModelT = TypeVar("ModelT", bound=BaseModel)


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("has characters that cannot be printed")
    return text


def _object_id(text: str) -> str:
    if not _ID.fullmatch(text):
        raise ValueError("is no id")
    return text


Name = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_one_line)]
"""A name that fits in a line of a message."""
ObjectId = Annotated[str, AfterValidator(_object_id)]
"""An id that can be part of an object's path."""


def parse_document(cls: type[ModelT], data: bytes | str, *, where: str, reason: str, cure: str = "") -> ModelT:
    """Read a document. Raises CorruptData (``reason``) with the first fault: no JSON, too deep, wrong or odd fields.

    ``cure`` says what to do then.
    """
    try:
        return cls.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "document"
        todo = f"; {cure}" if cure else ""
        raise CorruptData(f"{where}: {shown(place)}: {shown(first['msg'])}{todo}", reason=reason) from error
