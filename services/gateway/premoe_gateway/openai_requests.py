"""OpenAI request bodies: untrusted JSON in, one `Ask` out.

Parameters that would change the answer and are not supported are refused by name; those that only tag or bill a
request are ignored. The names are OpenAI's (https://platform.openai.com/docs/api-reference).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from premoe_gateway.domain import Ask, Sampling, Turn
from premoe_runtime.formats.errors import InvalidInput

_IGNORED = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls",
}  # fmt: skip
_MAX_SEED = 2**64
_COMPLETION_TOKENS = 16
"""OpenAI's own default for /v1/completions; a chat answer may be as long as the worker allows."""


@dataclass(frozen=True, slots=True)
class Order:
    """A request and how its answer is to be sent."""

    ask: Ask
    stream: bool
    include_usage: bool


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class _TextPart(_Strict):
    type: Literal["text"]
    text: str


class _Message(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_TextPart]


class _ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    type: Literal["text"]


_Stop = Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)]


class _Common(_Strict):
    model: str
    stream: bool = False
    stream_options: _StreamOptions | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    stop: Annotated[str, Field(min_length=1)] | _Stop | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=_MAX_SEED)
    max_tokens: int | None = Field(default=None, ge=1)
    n: int | None = 1
    presence_penalty: float | None = 0
    frequency_penalty: float | None = 0
    logit_bias: dict[str, float] | None = None
    pattern: str = ""
    active_experts: int | None = Field(default=None, ge=1)

    def unsupported(self) -> str:
        """The first parameter whose value cannot be honoured; empty if all can."""
        if self.n not in (None, 1):
            return "n"
        if self.presence_penalty:
            return "presence_penalty"
        if self.frequency_penalty:
            return "frequency_penalty"
        return "logit_bias" if self.logit_bias else ""

    def sampling(self, max_tokens: int) -> Sampling:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        seed = None if self.seed is None else self.seed % _MAX_SEED
        temperature = 1.0 if self.temperature is None else self.temperature
        return Sampling(max_tokens, temperature, 1.0 if self.top_p is None else self.top_p, stop, seed)

    def order(self, ask: Ask) -> Order:
        usage = self.stream_options is not None and self.stream_options.include_usage
        return Order(ask, self.stream, usage)


class _Chat(_Common):
    messages: list[_Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    function_call: Any = None
    response_format: _ResponseFormat | None = None

    def unsupported(self) -> str:
        for name in ("logprobs", "top_logprobs", "tools", "functions", "function_call"):
            if getattr(self, name):
                return name
        if self.tool_choice not in (None, "none"):
            return "tool_choice"
        return super().unsupported()


class _Completion(_Common):
    prompt: str | list[int] | list[str] | list[list[int]]
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = 1
    logprobs: int | None = None

    def unsupported(self) -> str:
        if self.logprobs is not None:
            return "logprobs"
        if self.best_of not in (None, 1):
            return "best_of"
        return "echo" if self.echo else "suffix" if self.suffix else super().unsupported()


_M = TypeVar("_M", bound=_Common)


class BadParameter(InvalidInput):
    """A request body that cannot be honoured; ``param`` names the field."""

    def __init__(self, message: str, param: str, reason: str = "INVALID_PARAMETER") -> None:
        super().__init__(message, reason=reason)
        self.param = param


def parse_chat(body: bytes) -> Order:
    """Read a /v1/chat/completions body. Raises BadParameter."""
    chat = _validate(_Chat, body)
    turns = tuple(_turn(message) for message in chat.messages)
    if turns[-1].role != "user":
        raise BadParameter("the last message must be the user's", "messages")
    sampling = chat.sampling(chat.max_completion_tokens or chat.max_tokens or 0)
    return chat.order(Ask(chat.model, turns, sampling, chat.pattern, chat.active_experts))


def parse_completion(body: bytes) -> Order:
    """Read a /v1/completions body. Raises BadParameter."""
    completion = _validate(_Completion, body)
    sampling = completion.sampling(completion.max_tokens or _COMPLETION_TOKENS)
    prompt = _one_prompt(completion.prompt)
    return completion.order(Ask(completion.model, prompt, sampling, completion.pattern, completion.active_experts))


def _one_prompt(prompt: str | list[int] | list[str] | list[list[int]]) -> str | tuple[int, ...]:
    """The only prompt of the four forms OpenAI allows."""
    if isinstance(prompt, str):
        return prompt
    if prompt and not isinstance(prompt[0], int):
        if len(prompt) > 1:
            raise BadParameter("only one prompt a request is supported", "prompt", "UNSUPPORTED_PARAMETER")
        return _one_prompt(prompt[0])
    ids = tuple(item for item in prompt if isinstance(item, int))
    if any(not 0 <= item < 2**32 for item in ids):
        raise BadParameter("prompt: token ids must lie in the model's vocabulary", "prompt")
    return ids


def _turn(message: _Message) -> Turn:
    text = message.content if isinstance(message.content, str) else "".join(part.text for part in message.content)
    return Turn("system" if message.role == "developer" else message.role, text)


def _validate(kind: type[_M], body: bytes) -> _M:
    try:
        document = json.loads(body)
    except ValueError:
        raise BadParameter("the body is not JSON", "") from None
    if not isinstance(document, dict):
        raise BadParameter("the body must be a JSON object", "")
    try:
        request = kind.model_validate({key: value for key, value in document.items() if key not in _IGNORED})
    except ValidationError as error:
        first = error.errors()[0]
        param = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] == "extra_forbidden":
            raise BadParameter(f"{param}: not a parameter of this API", param, "UNKNOWN_PARAMETER") from None
        raise BadParameter(f"{_place(first['loc'])}: {first['msg']}", param) from None
    name = request.unsupported()
    if name:
        raise BadParameter(f"{name} is not supported", name, "UNSUPPORTED_PARAMETER")
    return request


def _place(location: tuple[int | str, ...]) -> str:
    """``messages[0].content`` from ``("messages", 0, "content", "str")``: pydantic ends a union with its branch."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.islower() and part.isidentifier() and part not in ("str", "int"):
            text += f".{part}" if text else part
    return text
