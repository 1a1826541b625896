"""A config's ``quantization_config`` as a checked document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from premoe_runtime.formats.safetensors import shown
from premoe_runtime.numbers.groups import ALL
from premoe_runtime.numbers.spec import unsupported


class Settings(BaseModel):
    """Fields that no reader needs may have any value: tools write their own story beside the numbers."""

    model_config = ConfigDict(frozen=True, extra="ignore")


def _size(size: int) -> int:
    if not size:
        raise ValueError("Input should be a number of columns, or -1 for all of them")
    return ALL if size == -1 else size


GroupSize = Annotated[int, Field(ge=-1, le=1 << 24), AfterValidator(_size)]
"""Input columns that share a scale; files say -1 for all of them."""
SettingsT = TypeVar("SettingsT", bound=Settings)


def parse_settings(cls: type[SettingsT], config: Mapping[str, object], where: str) -> SettingsT:
    """Raises InvalidInput (NUMBERS_UNSUPPORTED) with the first value that is none of the supported ones."""
    try:
        return cls.model_validate(config)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = shown(".".join(str(part) for part in first["loc"]))
        if first["type"] == "missing":
            raise unsupported(where, f"{place} is missing") from error
        message = shown(first["msg"].removeprefix("Value error, ").replace("Input", "it"))
        if first["type"] != "value_error" or not isinstance(first["input"], dict):
            message = f"{place} is {shown(repr(first['input']))}: {message}"
        raise unsupported(where, message) from error
