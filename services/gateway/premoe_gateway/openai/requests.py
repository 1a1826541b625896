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

from premoe_servicekit.template_arguments import TEMPLATE_ARGUMENTS
from premoe_servicekit.texts import whole_text
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError

from premoe_gateway.domain import Ask, Prompt, Sampling, Turn
from premoe_gateway.echo import Echo
from premoe_gateway.openai.faults import BadParameter
from premoe_gateway.openai.formats import RESPONSE_FORMAT, parse_format
from premoe_gateway.openai.messages import MESSAGES, turn_of
from premoe_gateway.openai.sampling import SEEDS, UINT32, ChatLikelihoods, Int, SamplingFields, TextLikelihoods
from premoe_gateway.openai.search import PremoeBody, search_order
from premoe_gateway.openai.templates import Effort, parse_template_arguments
from premoe_gateway.openai.tools import TOOL_CHOICE, TOOLS, parse_tools
from premoe_gateway.openai.unsupported import IGNORED, ONLY
from premoe_gateway.openai.words import Text
from premoe_gateway.search.order import SearchOrder

_MOST_COMMAS = 1_100_000
"""Of a body. No context has as many tokens, and a list of more ids would take long to read."""
_MAX_CHOICES = 128
"""Of a request, all its prompts together."""
_MAX_SALT = 256
"""Characters."""
_MAX_DENIED, _MAX_TASK = 64, 128
"""Tasks, and characters of a name."""
_COMPLETION_TOKENS = 16
"""OpenAI's own default for /v1/completions; a chat answer may be as long as the context allows."""


@dataclass(frozen=True, slots=True)
class Order:
    """A request and how its answer is to be sent: ``n`` choices for ``ask`` and for each of the ``others``.

    ``echo``: each begins with its prompt, or is that "only".
    """

    ask: Ask
    stream: bool
    include_usage: bool
    n: int = 1
    others: tuple[str | tuple[int, ...], ...] = ()
    echo: Echo = ""
    search: SearchOrder | None = None
    """Whether the choices are what a search finds, of ``n`` answers."""

    @property
    def asks(self) -> tuple[Ask, ...]:
        """One a prompt."""
        return (self.ask, *(replace(self.ask, prompt=prompt) for prompt in self.others))

    def choices(self) -> list[tuple[int, Ask]]:
        """Which of ``asks`` each choice answers, and what is asked for it: of one prompt each has a seed of its own."""
        return [(index, _reseeded(ask, copy)) for index, ask in enumerate(self.asks) for copy in range(self.n)]

    def copy(self, number: int) -> Ask:
        """What is asked for one of the answers that a search samples, with a seed of its own."""
        return _reseeded(self.ask, number)


def _reseeded(ask: Ask, copy: int) -> Ask:
    seed = ask.sampling.seed
    if seed is None or not copy:
        return ask
    return replace(ask, sampling=replace(ask.sampling, seed=(seed + copy) % SEEDS))


def _tasks(value: object) -> object:
    tasks = [value] if isinstance(value, str) else value
    if (
        not isinstance(tasks, list)
        or len(tasks) > _MAX_DENIED
        or not all(isinstance(task, str) and 0 < len(task) <= _MAX_TASK for task in tasks)
    ):
        raise PydanticCustomError("deny", f"must be a list of at most {_MAX_DENIED} names of tasks")
    return tuple(dict.fromkeys(map(whole_text, tasks)))


_TASK = {"type": "string", "minLength": 1, "maxLength": _MAX_TASK}
_DENIED = {"anyOf": [_TASK, {"type": "array", "maxItems": _MAX_DENIED, "items": _TASK}]}
Denied = Annotated[tuple[str, ...], BeforeValidator(_tasks), WithJsonSchema(_DENIED)]
"""Tasks whose own experts a request does without."""
_STRING = {"type": "string"}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": UINT32}}
_PROMPT = {
    "anyOf": [
        _STRING,
        _IDS,
        {"type": "array", "minItems": 1, "maxItems": _MAX_CHOICES, "items": _STRING},
        {"type": "array", "minItems": 1, "maxItems": _MAX_CHOICES, "items": _IDS},
    ]
}


class StreamOptions(BaseModel):
    """What else is in there tags the stream or pads it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    include_usage: StrictBool | None = None


class _Common(SamplingFields):
    model: Text
    stream: StrictBool = False
    stream_options: StreamOptions = StreamOptions()
    n: Int = Field(default=1, ge=1, le=_MAX_CHOICES)
    pattern: Text = ""
    active_experts: Int | None = Field(default=None, ge=1, le=UINT32)
    deny: Denied = ()
    # vLLM's, but that nobody may go ahead of others.
    priority: Int = Field(default=0, ge=0, le=UINT32)
    # vLLM's. What the key of the request is called is part of the salt in any case.
    cache_salt: Annotated[Text, Field(max_length=_MAX_SALT)] = ""
    response_format: Annotated[Any, WithJsonSchema(RESPONSE_FORMAT)] = None
    premoe: PremoeBody = PremoeBody()

    def order(self, prompt: Prompt, sampling: Sampling, others: tuple[str | tuple[int, ...], ...] = ()) -> Order:
        shape = parse_format(self.response_format)
        ask = Ask(
            self.model,
            prompt,
            sampling,
            self.pattern,
            self.active_experts,
            shape,
            priority=self.priority,
            cache_salt=self.cache_salt,
            deny=self.deny,
        )
        if self.n * (1 + len(others)) > _MAX_CHOICES:
            raise BadParameter(f"n: at most {_MAX_CHOICES} choices a request, all prompts together", "n")
        order = Order(ask, self.stream, bool(self.stream_options.include_usage), self.n, others)
        return order if self.premoe.search is None else _searching(order, search_order(self.premoe.search))


def _searching(order: Order, search: SearchOrder) -> Order:
    """The order as a search. Raises BadParameter for what a search cannot be asked for."""
    asked = {
        "prompt": bool(order.others),
        "logprobs": order.ask.sampling.logprobs is not None,
        "active_experts": order.ask.active_experts is not None,
    }
    for name, given in asked.items():
        if given:
            better = "; say which in premoe.search.active_experts" if name == "active_experts" else ""
            what = "several prompts cannot" if name == "prompt" else "cannot"
            raise BadParameter(f"{name}: {what} go with premoe.search{better}", name)
    sampling = order.ask.sampling
    uncut = {
        "stop": bool(sampling.stop),
        "min_tokens": bool(sampling.min_tokens),
        "presence_penalty": bool(sampling.presence_penalty),
        "frequency_penalty": bool(sampling.frequency_penalty),
        "response_format": order.ask.format is not None,
    }
    for name, given in uncut.items():
        if given and search.steps is not None:
            # Each counts from where an answer begins, and a step is an answer that begins in the middle.
            raise BadParameter(f"{name}: cannot go with premoe.search.steps", name)
    return replace(order, search=search)


class ChatBody(_Common, ChatLikelihoods):
    """POST /v1/chat/completions."""

    tools: Annotated[Any, WithJsonSchema(TOOLS)] = None
    tool_choice: Annotated[Any, WithJsonSchema(TOOL_CHOICE)] = None
    parallel_tool_calls: StrictBool | None = None
    reasoning_effort: Effort | None = None
    # Not OpenAI's; other servers have it by this name.
    chat_template_kwargs: Annotated[Any, WithJsonSchema(TEMPLATE_ARGUMENTS)] = None

    messages: Annotated[list[Any], WithJsonSchema(MESSAGES)]
    max_completion_tokens: Int | None = Field(default=None, ge=1, le=UINT32)


class CompletionBody(_Common, TextLikelihoods):
    """POST /v1/completions."""

    prompt: Annotated[Any, WithJsonSchema(_PROMPT)]
    max_tokens: Int | None = Field(default=None, ge=0, le=UINT32)


_M = TypeVar("_M", bound=BaseModel)


def parse_chat(body: bytes) -> Order:
    """Read a /v1/chat/completions body. Raises BadParameter."""
    chat = validate(ChatBody, body)
    turns = chat_turns(chat.messages)
    tools = parse_tools(chat.tools, chat.tool_choice, chat.parallel_tool_calls)
    most = chat.max_completion_tokens or chat.max_tokens or 0
    order = chat.order(turns, chat.sampling(most, logprobs=chat.asked()))
    if tools.offered and order.search is not None:
        raise BadParameter("tools: cannot go with premoe.search", "tools")
    arguments = parse_template_arguments(chat.chat_template_kwargs, chat.reasoning_effort)
    return replace(order, ask=replace(order.ask, tools=tools, template_arguments=arguments))


def chat_turns(messages: list[Any]) -> tuple[Turn, ...]:
    """A conversation that can be answered. Raises BadParameter."""
    return answerable(
        tuple(turn_of(message, f"messages[{index}]") for index, message in enumerate(messages)), "messages"
    )


def answerable(turns: tuple[Turn, ...], field: str) -> tuple[Turn, ...]:
    """``turns``, from the body's ``field``, if one may follow. Raises BadParameter."""
    if not turns:
        raise BadParameter(f"{field}: must hold at least one message", field)
    if turns[-1].role not in ("user", "tool"):
        raise BadParameter(f"{field}: the last message must be the user's or a tool's", field)
    return turns


def parse_completion(body: bytes) -> Order:
    """Read a /v1/completions body. Raises BadParameter."""
    completion = validate(CompletionBody, body)
    first, *others = _prompts(completion.prompt)
    most = _COMPLETION_TOKENS if completion.max_tokens is None else completion.max_tokens
    echo: Echo = "" if not completion.echo else "prompt" if most else "only"
    if echo and completion.premoe.search is not None:
        raise BadParameter("echo: cannot go with premoe.search", "echo")
    if not (most or completion.echo):
        raise BadParameter("max_tokens: must be at least 1, or 0 with echo", "max_tokens")
    likelihoods = completion.logprobs
    # An engine makes one token at least.
    sampling = completion.sampling(most or 1, logprobs=likelihoods, prompt_logprobs=likelihoods if echo else None)
    return replace(completion.order(first, sampling, tuple(others)), echo=echo)


def _prompts(prompt: object) -> list[str | tuple[int, ...]]:
    """The prompts of any of the four forms OpenAI allows."""
    if isinstance(prompt, list) and prompt and all(isinstance(item, str | list) for item in prompt):
        return [_one_prompt(item) for item in prompt]
    return [_one_prompt(prompt)]


def _one_prompt(prompt: object) -> str | tuple[int, ...]:
    if isinstance(prompt, str):
        return whole_text(prompt)
    if isinstance(prompt, list) and all(type(item) is int for item in prompt):
        if not all(0 <= item <= UINT32 for item in prompt):
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


def validate(kind: type[_M], body: bytes, table: Mapping[str, tuple[object, ...]] = ONLY) -> _M:
    """A body of that kind; ``table``: as ``ONLY``. Raises BadParameter."""
    known = kind.model_fields
    if body.count(b",") > _MOST_COMMAS:
        field = next((name for name in ("tokens", "prompt") if name in known), "")
        raise BadParameter(f"{field or 'the body'}: longer than any context; at most {_MOST_COMMAS} commas", field)
    taken = known.keys() | table.keys()
    fields = {name: value for name, value in read_object(body).items() if name in taken or name not in IGNORED}
    only = table.keys() - known.keys()
    for name in [name for name in fields if name in only]:
        # Compared by type too: logprobs 0 asks /v1/completions for something, False does not.
        if not any(value == fields[name] and type(value) is type(fields[name]) for value in _asks_nothing(table[name])):
            raise BadParameter(f"{name} is not supported", name, "UNSUPPORTED_PARAMETER")
    try:
        return kind.model_validate({name: value for name, value in fields.items() if name not in only})
    except ValidationError as error:
        raise _fault(error) from None


def _asks_nothing(values: tuple[object, ...]) -> tuple[object, ...]:
    """Numbers as either of JSON's kinds."""
    return tuple(form for value in values for form in ((value, float(value)) if type(value) is int else (value,)))


def _fault(error: ValidationError) -> BadParameter:
    first = error.errors(include_url=False, include_input=False)[0]
    place = whole_text(".".join(str(part) for part in first["loc"]))
    if first["type"] == "extra_forbidden":
        return BadParameter(f"{place}: not a parameter of this API", place, "UNKNOWN_PARAMETER")
    if first["type"] == "missing":
        return BadParameter(f"{place}: must be given", place, "MISSING_PARAMETER")
    if first["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return BadParameter(f"{place}: must be an object", place)
    if first["type"] in ("union_tag_invalid", "union_tag_not_found"):
        known = first.get("ctx", {}).get("expected_tags") or "one that is known"
        return BadParameter(f"{place}.type: must be {known}", f"{place}.type")
    return BadParameter(f"{place}: {first['msg'].replace('Input should be', 'must be')}", place)
