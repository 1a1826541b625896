"""Bodies of /v1/responses, OpenAI's newer form of a conversation: untrusted JSON in, one order out."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Annotated, Any

from premoe_servicekit.texts import whole_text
from pydantic import BeforeValidator, Field, StrictBool, WithJsonSchema
from pydantic_core import PydanticCustomError

from premoe_gateway.domain import Ask, Turn
from premoe_gateway.openai.faults import BadParameter
from premoe_gateway.openai.formats import FLAT_FORMAT, json_text, parse_format
from premoe_gateway.openai.messages import content_of, turn_of
from premoe_gateway.openai.requests import Denied, Order, StreamOptions, answerable, validate
from premoe_gateway.openai.sampling import UINT32, Int, SamplingFields
from premoe_gateway.openai.tools import FLAT_TOOL_CHOICE, FLAT_TOOLS, call_id_of, call_of, parse_tools
from premoe_gateway.openai.words import Text
from premoe_runtime.formats.errors import InvalidInput

Json = dict[str, Any]

ASKS_NOTHING: dict[str, tuple[object, ...]] = {
    "store": (False,),
    "background": (False,),
    "previous_response_id": (),
    "conversation": (),
    "prompt": (),
    "include": ([],),
    "reasoning": ({}, {"effort": "none"}),
    "truncation": ("disabled",),
    "top_logprobs": (0,),
    "max_tool_calls": (),
    "premoe": ({},),
}
"""Parameters that are not supported, with the values that ask for nothing. Nothing is kept between requests."""
_PARAMS = {
    "MAX_TOKENS_INVALID": "max_output_tokens",
    "RESPONSE_FORMAT_INVALID": "text.format",
    "TOOL_CALLS_UNSUPPORTED": "input",
}
"""Fields that only a worker can judge, where they have other names than a chat's."""
_TAGS, _TAG_NAME, _TAG_TEXT = 16, 64, 512
_TEXT_PART = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"enum": ["input_text", "output_text"]}, "text": {"type": "string"}},
}
_CONTENT = {"anyOf": [{"type": "string"}, {"type": "array", "items": _TEXT_PART}]}
_ID = {"type": "string", "minLength": 1}
_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "type": {"const": "message"},
        "role": {"enum": ["system", "developer", "user", "assistant"]},
        "content": _CONTENT,
    },
}
_CALL = {
    "type": "object",
    "required": ["type", "call_id", "name"],
    "properties": {
        "type": {"const": "function_call"},
        "call_id": _ID,
        "name": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"},
        "arguments": {"type": ["string", "null"]},
    },
}
_OUTPUT = {
    "type": "object",
    "required": ["type", "call_id", "output"],
    "properties": {"type": {"const": "function_call_output"}, "call_id": _ID, "output": _CONTENT},
}
_INPUT = {
    "anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {"anyOf": [_MESSAGE, _CALL, _OUTPUT]}}]
}
_TEXT = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"format": {"anyOf": [FLAT_FORMAT, {"type": "null"}]}, "verbosity": {"enum": ["medium", None]}},
}
_METADATA = {
    "type": "object",
    "maxProperties": _TAGS,
    "propertyNames": {"maxLength": _TAG_NAME},
    "additionalProperties": {"type": "string", "maxLength": _TAG_TEXT},
}


def _tags(value: object) -> object:
    if (
        not isinstance(value, dict)
        or len(value) > _TAGS
        or not all(len(name) <= _TAG_NAME for name in value)
        or not all(isinstance(text, str) and len(text) <= _TAG_TEXT for text in value.values())
    ):
        wanted = f"must be an object of at most {_TAGS} names (of {_TAG_NAME} characters) with texts (of {_TAG_TEXT})"
        raise PydanticCustomError("tags", wanted)
    return {whole_text(name): whole_text(text) for name, text in value.items()}


class ResponseBody(SamplingFields):
    """POST /v1/responses."""

    model: Text
    input: Annotated[Any, WithJsonSchema(_INPUT)]
    instructions: Text | None = None
    max_tokens: Int | None = Field(default=None, ge=1, le=UINT32, alias="max_output_tokens")
    text: Annotated[Any, WithJsonSchema(_TEXT)] = None
    tools: Annotated[Any, WithJsonSchema(FLAT_TOOLS)] = None
    tool_choice: Annotated[Any, WithJsonSchema(FLAT_TOOL_CHOICE)] = None
    parallel_tool_calls: StrictBool | None = None
    metadata: Annotated[dict[str, str], BeforeValidator(_tags), WithJsonSchema(_METADATA)] = Field(default_factory=dict)
    stream: StrictBool = False
    stream_options: StreamOptions = StreamOptions()
    pattern: Text = ""
    active_experts: Int | None = Field(default=None, ge=1, le=UINT32)
    deny: Denied = ()


@dataclass(frozen=True, slots=True)
class ResponseOrder(Order):
    """``repeated``: fields of the request that its answer repeats."""

    repeated: Json = field(default_factory=dict)


def parse_response(body: bytes) -> ResponseOrder:
    """Read a /v1/responses body. Raises BadParameter."""
    asked = validate(ResponseBody, body, ASKS_NOTHING)
    turns = answerable(_turns(asked.input), "input")
    if asked.instructions is not None:
        turns = (Turn("system", asked.instructions), *turns)
    told = {} if asked.text is None else _text(asked.text)
    ask = Ask(
        asked.model,
        turns,
        asked.sampling(asked.max_tokens or 0, logprobs=None),
        asked.pattern,
        asked.active_experts,
        parse_format(told.get("format"), "text.format", flat=True),
        parse_tools(asked.tools, asked.tool_choice, asked.parallel_tool_calls, flat=True),
        deny=asked.deny,
    )
    repeated = {
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_tokens,
        "metadata": asked.metadata,
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "temperature": asked.temperature,
        "text": {"format": _plain(told.get("format") or {"type": "text"}, "text.format")},
        "tool_choice": _plain(asked.tool_choice or "auto", "tool_choice"),
        "tools": [
            {"type": "function", "description": None, "parameters": None, "strict": None, **_plain(tool, "tools")}
            for tool in asked.tools or []
        ],
        "top_p": asked.top_p,
    }
    return ResponseOrder(ask, asked.stream, include_usage=True, repeated=repeated)


def renamed(order: Order, error: InvalidInput) -> BadParameter | None:
    """What a worker refuses of an order, by the field's name in its body; None: its name is a chat's."""
    if isinstance(order, ResponseOrder) and error.reason in _PARAMS:
        return BadParameter(str(error), _PARAMS[error.reason], error.reason)
    return None


def _plain(value: Any, place: str) -> Any:
    """As UTF-8 can carry it."""
    return json.loads(json_text(value, place))


def _text(text: object) -> Json:
    if not isinstance(text, dict):
        raise BadParameter("text: must be an object with format", "text")
    for name, value in text.items():
        if name == "verbosity" and value not in (None, "medium"):
            raise BadParameter("text.verbosity is not supported", "text.verbosity", "UNSUPPORTED_PARAMETER")
        if name not in ("format", "verbosity"):
            place = whole_text(f"text.{name}")
            raise BadParameter(f"{place}: not a parameter of this API", place, "UNKNOWN_PARAMETER")
    return text


def _turns(given: object) -> tuple[Turn, ...]:
    if isinstance(given, str):
        return (Turn("user", whole_text(given)),)
    if not isinstance(given, list):
        raise BadParameter("input: must be a string or a list of items", "input")
    turns: list[Turn] = []
    for number, item in enumerate(given):
        turn = _turn(item, f"input[{number}]")
        if turn.tool_calls and turns and turns[-1].role == "assistant":
            # What one answer said and called comes as several items.
            before = turns.pop()
            turn = Turn("assistant", before.content, (*before.tool_calls, *turn.tool_calls))
        turns.append(turn)
    return tuple(turns)


def _turn(item: object, place: str) -> Turn:
    if not isinstance(item, dict):
        raise BadParameter(f"{place}: must be an object", place)
    kind = item.get("type", "message")
    if kind == "function_call":
        return Turn("assistant", "", (call_of(call_id_of(item, "call_id", place), item, place),))
    if kind == "function_call_output":
        output = content_of(item.get("output"), f"{place}.output")
        return Turn("tool", output, tool_call_id=call_id_of(item, "call_id", place))
    if kind != "message":
        message = f"{place}.type: must be message, function_call or function_call_output"
        raise BadParameter(message, f"{place}.type", "UNSUPPORTED_PARAMETER")
    if item.get("role") == "tool":
        raise BadParameter(f"{place}.role: send a function_call_output instead", f"{place}.role")
    return turn_of({"role": item.get("role"), "content": item.get("content", [])}, place)
