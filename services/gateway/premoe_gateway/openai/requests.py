"""OpenAI request bodies: untrusted JSON in, one `Ask` out.

Parameters that would change the answer and are not supported are refused by name; those that only tag or bill a
request are ignored, and null stands for what was not given. The names are OpenAI's
(https://platform.openai.com/docs/api-reference).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError

from premoe_gateway.domain import Ask, Prompt, Sampling
from premoe_gateway.openai.formats import RESPONSE_FORMAT, parse_format
from premoe_gateway.openai.messages import MESSAGES, BadParameter, turn_of, whole_text

IGNORED = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls",
}  # fmt: skip
ONLY: Mapping[str, tuple[object, ...]] = {
    "best_of": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "min_p": (0,),
    "repetition_penalty": (1,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
}
"""Parameters that change the answer and are not supported, with the values that ask for nothing."""
_MAX_SEED = 2**64
_UINT32 = 2**32 - 1
_MAX_STOPS = 4
_MAX_CHOICES = 128
"""Of a request, all its prompts together."""
_COMPLETION_TOKENS = 16
"""OpenAI's own default for /v1/completions; a chat answer may be as long as the context allows."""


@dataclass(frozen=True, slots=True)
class Order:
    """A request and how its answer is to be sent: ``n`` choices for ``ask`` and for each of the ``others``."""

    ask: Ask
    stream: bool
    include_usage: bool
    n: int = 1
    others: tuple[str | tuple[int, ...], ...] = ()

    @property
    def asks(self) -> tuple[Ask, ...]:
        """One a prompt."""
        return (self.ask, *(replace(self.ask, prompt=prompt) for prompt in self.others))

    def choices(self) -> list[tuple[int, Ask]]:
        """Which of ``asks`` each choice answers, and what is asked for it: of one prompt each has a seed of its own."""
        return [(index, _reseeded(ask, copy)) for index, ask in enumerate(self.asks) for copy in range(self.n)]


def _reseeded(ask: Ask, copy: int) -> Ask:
    seed = ask.sampling.seed
    if seed is None or not copy:
        return ask
    return replace(ask, sampling=replace(ask.sampling, seed=(seed + copy) % _MAX_SEED))


def _text(value: object) -> object:
    if not isinstance(value, str):
        raise PydanticCustomError("text", "must be a string")
    return whole_text(value)


_Text = Annotated[str, BeforeValidator(_text)]


def _stops(value: object) -> object:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > _MAX_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise PydanticCustomError("stop", f"must be a string or a list of at most {_MAX_STOPS}, none of them empty")
    return [whole_text(stop) for stop in stops]


def _number(value: object) -> object:
    if isinstance(value, bool | str):
        raise PydanticCustomError("number", "must be a number")
    return value


_Int = Annotated[int, BeforeValidator(_number)]
_Float = Annotated[float, BeforeValidator(_number)]
_STRING = {"type": "string"}
_STOP = {"type": "string", "minLength": 1}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": _UINT32}}
_PROMPT = {
    "anyOf": [
        _STRING,
        _IDS,
        {"type": "array", "minItems": 1, "maxItems": _MAX_CHOICES, "items": _STRING},
        {"type": "array", "minItems": 1, "maxItems": _MAX_CHOICES, "items": _IDS},
    ]
}
_STOPS = {"anyOf": [_STOP, {"type": "array", "maxItems": _MAX_STOPS, "items": _STOP}]}


class _StreamOptions(BaseModel):
    """What else is in there tags the stream or pads it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    include_usage: StrictBool | None = None


class _Common(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: _Text
    stream: StrictBool = False
    stream_options: _StreamOptions = _StreamOptions()
    temperature: _Float | None = Field(default=None, ge=0, le=2)
    top_p: _Float | None = Field(default=None, gt=0, le=1)
    stop: Annotated[tuple[str, ...], BeforeValidator(_stops), WithJsonSchema(_STOPS)] = ()
    seed: _Int | None = Field(default=None, ge=-(2**63), lt=_MAX_SEED)
    max_tokens: _Int | None = Field(default=None, ge=1, le=_UINT32)
    top_k: _Int | None = Field(default=None, ge=-1, le=_UINT32)
    """Not OpenAI's, but other servers have it; 0 and -1 mean off."""
    n: Annotated[int, BeforeValidator(_number)] = Field(default=1, ge=1, le=_MAX_CHOICES)
    pattern: _Text = ""
    active_experts: _Int | None = Field(default=None, ge=1, le=_UINT32)
    response_format: Annotated[Any, WithJsonSchema(RESPONSE_FORMAT)] = None

    def order(self, prompt: Prompt, max_tokens: int, others: tuple[str | tuple[int, ...], ...] = ()) -> Order:
        seed = None if self.seed is None else self.seed % _MAX_SEED
        sampling = Sampling(
            max_tokens,
            self.temperature,
            self.top_p,
            self.stop,
            seed,
            None if self.top_k is None else max(0, self.top_k),
        )
        shape = parse_format(self.response_format)
        ask = Ask(self.model, prompt, sampling, self.pattern, self.active_experts, shape)
        if self.n * (1 + len(others)) > _MAX_CHOICES:
            raise BadParameter(f"n: at most {_MAX_CHOICES} choices a request, all prompts together", "n")
        return Order(ask, self.stream, bool(self.stream_options.include_usage), self.n, others)


class ChatBody(_Common):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Any], WithJsonSchema(MESSAGES)]
    max_completion_tokens: _Int | None = Field(default=None, ge=1, le=_UINT32)


class CompletionBody(_Common):
    """POST /v1/completions."""

    prompt: Annotated[Any, WithJsonSchema(_PROMPT)]


_M = TypeVar("_M", bound=_Common)


def parse_chat(body: bytes) -> Order:
    """Read a /v1/chat/completions body. Raises BadParameter."""
    chat = _validate(ChatBody, body)
    turns = tuple(turn_of(message, f"messages[{index}]") for index, message in enumerate(chat.messages))
    if not turns:
        raise BadParameter("messages: must hold at least one message", "messages")
    if turns[-1].role != "user":
        raise BadParameter("messages: the last message must be the user's", "messages")
    return chat.order(turns, chat.max_completion_tokens or chat.max_tokens or 0)


def parse_completion(body: bytes) -> Order:
    """Read a /v1/completions body. Raises BadParameter."""
    completion = _validate(CompletionBody, body)
    first, *others = _prompts(completion.prompt)
    return completion.order(first, completion.max_tokens or _COMPLETION_TOKENS, tuple(others))


def _prompts(prompt: object) -> list[str | tuple[int, ...]]:
    """The prompts of any of the four forms OpenAI allows."""
    if isinstance(prompt, list) and prompt and all(isinstance(item, str | list) for item in prompt):
        return [_one_prompt(item) for item in prompt]
    return [_one_prompt(prompt)]


def _one_prompt(prompt: object) -> str | tuple[int, ...]:
    if isinstance(prompt, str):
        return whole_text(prompt)
    if isinstance(prompt, list) and all(type(item) is int for item in prompt):
        if not all(0 <= item <= _UINT32 for item in prompt):
            raise BadParameter("prompt: token ids must lie in the model's vocabulary", "prompt")
        return tuple(prompt)
    raise BadParameter("prompt: must be a string, a list of token ids, or a list of such prompts", "prompt")


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body, without what is null. Raises BadParameter."""
    try:
        document = json.loads(body, parse_constant=_no_number)
    except RecursionError:
        raise BadParameter("the body is nested too deeply", "") from None
    except ValueError as error:
        raise BadParameter(f"the body is not JSON: {error}", "") from None
    if not isinstance(document, dict):
        raise BadParameter("the body must be a JSON object", "")
    return {whole_text(name): value for name, value in document.items() if value is not None}


def _no_number(name: str) -> object:
    raise ValueError(f"{name} is not a number that JSON knows")


def _validate(kind: type[_M], body: bytes) -> _M:
    fields = {name: value for name, value in read_object(body).items() if name not in IGNORED}
    for name in ONLY:
        if name not in fields:
            continue
        # Compared by type too: logprobs 0 asks /v1/completions for something, False does not.
        if not any(value == fields[name] and type(value) is type(fields[name]) for value in _asks_nothing(name)):
            raise BadParameter(f"{name} is not supported", name, "UNSUPPORTED_PARAMETER")
    try:
        return kind.model_validate({name: value for name, value in fields.items() if name not in ONLY})
    except ValidationError as error:
        raise _fault(error) from None


def _asks_nothing(name: str) -> tuple[object, ...]:
    """Numbers as either of JSON's kinds."""
    return tuple(form for value in ONLY[name] for form in ((value, float(value)) if type(value) is int else (value,)))


def _fault(error: ValidationError) -> BadParameter:
    first = error.errors(include_url=False, include_input=False)[0]
    place = whole_text(".".join(str(part) for part in first["loc"]))
    if first["type"] == "extra_forbidden":
        return BadParameter(f"{place}: not a parameter of this API", place, "UNKNOWN_PARAMETER")
    if first["type"] == "missing":
        return BadParameter(f"{place}: must be given", place, "MISSING_PARAMETER")
    if first["type"] == "model_type":
        return BadParameter(f"{place}: must be an object", place)
    return BadParameter(f"{place}: {first['msg'].replace('Input should be', 'must be')}", place)
