"""Bodies of /tokenize and /detokenize, in the shapes of vLLM. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, StrictBool, WithJsonSchema
from pydantic_core import PydanticCustomError

from premoe_gateway.domain import Prompt, Tokens
from premoe_gateway.openai.faults import BadParameter
from premoe_gateway.openai.messages import MESSAGES
from premoe_gateway.openai.requests import Text, chat_turns, validate
from premoe_gateway.openai.sampling import UINT32

Json = dict[str, object]

_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": UINT32}}


def _ids(value: object) -> object:
    if not isinstance(value, list) or not all(type(item) is int and 0 <= item <= UINT32 for item in value):
        raise PydanticCustomError("ids", "must be a list of token ids")
    return value


class TokenizeBody(BaseModel):
    """POST /tokenize: a prompt or a conversation. ``model`` may be left out where one is served."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Text = ""
    prompt: Text | None = None
    messages: Annotated[list[Any] | None, WithJsonSchema(MESSAGES)] = None
    add_special_tokens: StrictBool | None = None
    add_generation_prompt: StrictBool = True
    return_token_strs: StrictBool = False


class DetokenizeBody(BaseModel):
    """POST /detokenize."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Text = ""
    tokens: Annotated[tuple[int, ...], BeforeValidator(_ids), WithJsonSchema(_IDS)]


@dataclass(frozen=True, slots=True)
class TokenizeOrder:
    """``plain``: without the special tokens that the tokenizer adds to text; ``names``: said beside the ids."""

    model: str
    prompt: Prompt
    plain: bool
    names: bool


def parse_tokenize(body: bytes) -> TokenizeOrder:
    """Read a /tokenize body. Raises BadParameter."""
    asked = validate(TokenizeBody, body)
    if (asked.prompt is None) == (asked.messages is None):
        raise BadParameter("prompt: give either prompt or messages", "prompt")
    if asked.messages is None:
        plain = asked.add_special_tokens is False
        return TokenizeOrder(asked.model, asked.prompt or "", plain, asked.return_token_strs)
    # Tokens of a conversation are those that would be answered: templates write their own special ones.
    if asked.add_special_tokens or not asked.add_generation_prompt:
        name = "add_special_tokens" if asked.add_special_tokens else "add_generation_prompt"
        raise BadParameter(f"{name}: not supported with messages but as it is", name, "UNSUPPORTED_PARAMETER")
    return TokenizeOrder(asked.model, chat_turns(asked.messages), False, asked.return_token_strs)


def tokens(found: Tokens, *, names: bool) -> Json:
    """The answer of /tokenize."""
    return {
        "count": len(found.ids),
        "max_model_len": found.context,
        "tokens": list(found.ids),
        "token_strs": list(found.names) if names else None,
    }
