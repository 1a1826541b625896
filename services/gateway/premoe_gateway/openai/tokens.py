"""Bodies of /tokenize and /detokenize, in the shapes of vLLM. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from premoe_servicekit.template_arguments import TEMPLATE_ARGUMENTS
from pydantic import BaseModel, BeforeValidator, ConfigDict, StrictBool, WithJsonSchema
from pydantic_core import PydanticCustomError

from premoe_gateway.domain import Ask, Sampling, Tokens
from premoe_gateway.openai.faults import BadParameter
from premoe_gateway.openai.messages import MESSAGES
from premoe_gateway.openai.requests import chat_turns, validate
from premoe_gateway.openai.sampling import UINT32
from premoe_gateway.openai.templates import FIELD, parse_template_arguments
from premoe_gateway.openai.tools import TOOLS, parse_tools
from premoe_gateway.openai.words import Text

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
    # Of a conversation, as where it is answered.
    tools: Annotated[Any, WithJsonSchema(TOOLS)] = None
    chat_template_kwargs: Annotated[Any, WithJsonSchema(TEMPLATE_ARGUMENTS)] = None


class DetokenizeBody(BaseModel):
    """POST /detokenize."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Text = ""
    tokens: Annotated[tuple[int, ...], BeforeValidator(_ids), WithJsonSchema(_IDS)]


@dataclass(frozen=True, slots=True)
class TokenizeOrder:
    """A prompt and how its tokens are told; ``ask.model`` empty: the one that is served.

    ``plain``: without the special tokens that the tokenizer adds to text; ``names``: said beside the ids.
    """

    ask: Ask
    plain: bool
    names: bool


def parse_tokenize(body: bytes) -> TokenizeOrder:
    """Read a /tokenize body. Raises BadParameter."""
    asked = validate(TokenizeBody, body)
    if (asked.prompt is None) == (asked.messages is None):
        raise BadParameter("prompt: give either prompt or messages", "prompt")
    if asked.messages is None:
        for name in ("tools", FIELD):
            if getattr(asked, name) is not None:
                raise BadParameter(f"{name}: goes with messages only", name)
        plain = asked.add_special_tokens is False
        return TokenizeOrder(Ask(asked.model, asked.prompt or "", Sampling()), plain, asked.return_token_strs)
    # Tokens of a conversation are those that would be answered: templates write their own special ones.
    if asked.add_special_tokens or not asked.add_generation_prompt:
        name = "add_special_tokens" if asked.add_special_tokens else "add_generation_prompt"
        raise BadParameter(f"{name}: not supported with messages but as it is", name, "UNSUPPORTED_PARAMETER")
    ask = Ask(
        asked.model,
        chat_turns(asked.messages),
        Sampling(),
        tools=parse_tools(asked.tools, None, None),
        template_arguments=parse_template_arguments(asked.chat_template_kwargs),
    )
    return TokenizeOrder(ask, False, asked.return_token_strs)


def tokens(found: Tokens, *, names: bool) -> Json:
    """The answer of /tokenize."""
    return {
        "count": len(found.ids),
        "max_model_len": found.context,
        "tokens": list(found.ids),
        "token_strs": list(found.names) if names else None,
    }
