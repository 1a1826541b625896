"""OpenAI answer bodies out of an answer's events. Pure: values in, JSON-able dictionaries out.

Beside OpenAI's own fields every answer carries one object `premoe`: which pattern ran and why, how much of the
router's probability mass it kept, and what had to be moved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from premoe_servicekit.texts import whole_text

from premoe_gateway.domain import Finished, Recognition, Sampling, Started, ToolCall, WorkerState
from premoe_gateway.openai.faults import BadParameter
from premoe_runtime.formats.errors import (
    Conflict,
    CorruptData,
    Exhausted,
    InvalidInput,
    NotFound,
    PremoeError,
    Unavailable,
)

Json = dict[str, object]

_FINISH = {"stop": "stop", "length": "length", "cancelled": "stop", "tool_calls": "tool_calls"}
_STATUS: tuple[tuple[type[PremoeError], int], ...] = (
    (InvalidInput, 400),
    (NotFound, 404),
    (Conflict, 400),  # clients send a 409 again, and again
    (CorruptData, 500),
    (Unavailable, 503),
    (Exhausted, 429),
)
_STATUS_OF_REASON = {
    "INVALID_API_KEY": 401,
    "REQUEST_TIMEOUT": 408,
    "BODY_TOO_LARGE": 413,
    "MEDIA_TYPE": 415,
    "UNKNOWN_TASK": 422,
    "DEADLINE_EXCEEDED": 504,
}
_NAMES = (*(field.name for field in fields(Sampling)), "active_experts", "deny", "tokens")
_PARAM_OF_REASON = {
    **{f"{name.upper()}_INVALID": name for name in _NAMES},
    "PROMPT_LOGPROBS_INVALID": "logprobs",
    "RESPONSE_FORMAT_INVALID": "response_format",
    "TEMPLATE_ARGUMENT": "chat_template_kwargs",
    "TOOLS_INVALID": "tools",
    "TOOLS_UNSUPPORTED": "tools",
    "TOOL_CHOICE_UNSUPPORTED": "tool_choice",
    "TOOL_CALLS_UNSUPPORTED": "messages",
    "MODEL_MISSING": "model",
    "SEARCH_ANSWERS": "n",
    "SEARCH_EXPERTS": "premoe.search.active_experts",
    "SEARCH_OFF": "premoe.search",
    "VERIFIER_INVALID": "premoe.search.verifier",
    "VERIFIER_NOT_FOUND": "premoe.search.verifier.name",
}
"""Fields that only a worker can judge."""
_LONGEST_MESSAGE = 500


@dataclass(frozen=True, slots=True)
class Head:
    """What all chunks of one answer share."""

    id: str
    created: int
    model: str
    kind: Literal["chat", "text"]

    def base(self, *, chunk: bool) -> Json:
        names = {"chat": ("chat.completion", "chat.completion.chunk"), "text": ("text_completion", "text_completion")}
        return {"id": self.id, "object": names[self.kind][chunk], "created": self.created, "model": self.model}


@dataclass(frozen=True, slots=True)
class Choice:
    """One sequence of an answer. ``prompt``: number of its prompt in the request."""

    prompt: int
    text: str
    started: Started
    finished: Finished
    recognition: Recognition
    logprobs: Mapping[str, object] | None = None
    calls: tuple[ToolCall, ...] = ()
    whole: bool = True
    """False of what a search has cut: nobody has measured it."""

    @property
    def record(self) -> Json:
        told = record(self.started, self.finished, self.recognition)
        return told if self.whole else {**told, **dict.fromkeys(("retained_mass", "first_token_ms", "decode_ms"))}


def whole(head: Head, choices: Sequence[Choice]) -> Json:
    """A complete answer, for requests that do not stream. Of several choices each has its own `premoe` object, too."""
    listed: list[Json] = []
    for index, choice in enumerate(choices):
        entry: Json = {"index": index, "finish_reason": _FINISH[choice.finished.reason], "logprobs": choice.logprobs}
        if head.kind == "chat":
            entry["message"] = _message(choice)
        else:
            entry["text"] = choice.text
        listed.append(entry if len(choices) == 1 else {**entry, "premoe": choice.record})
    return {
        **head.base(chunk=False),
        "choices": listed,
        "usage": usage(choices),
        "premoe": choices[0].record,
    }


def _message(choice: Choice) -> Json:
    message: Json = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.calls:
        calls = [_call(call) for call in choice.calls]
        message = {**message, "content": choice.text or None, "tool_calls": calls}
    return message


def _call(call: ToolCall) -> Json:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def opening(head: Head, index: int) -> Json | None:
    """The first chunk of a chat's choice names the role; a text completion has none."""
    return _chunk(head, index, {"role": "assistant", "content": ""}, None) if head.kind == "chat" else None


def piece(head: Head, index: int, text: str, logprobs: Mapping[str, object] | None) -> Json:
    """A chunk of text, with the log probabilities of the tokens that have come."""
    return _chunk(head, index, {"content": text} if head.kind == "chat" else text, None, logprobs)


def called(head: Head, index: int, number: int, call: ToolCall) -> Json:
    """A chunk with the whole of a choice's call; ``number`` counts from 0."""
    return _chunk(head, index, {"tool_calls": [{"index": number, **_call(call)}]}, None)


def closing(head: Head, index: int, choice: Choice) -> Json:
    """The chunk that carries the finish reason and the `premoe` object."""
    chunk = _chunk(head, index, {} if head.kind == "chat" else "", _FINISH[choice.finished.reason])
    return {**chunk, "premoe": choice.record}


def usage_chunk(head: Head, choices: Sequence[Choice]) -> Json:
    """The extra last chunk that `stream_options.include_usage` asks for."""
    return {**head.base(chunk=True), "choices": [], "usage": usage(choices)}


def usage(choices: Sequence[Choice]) -> Json:
    """Tokens of all choices; those of a prompt count once."""
    prompts = {choice.prompt: choice.finished.prompt_tokens for choice in choices}
    completion = sum(choice.finished.completion_tokens for choice in choices)
    prompt = sum(prompts.values())
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def record(started: Started, finished: Finished, recognition: Recognition) -> Json:
    """The `premoe` object; score and times of recognition are null where the caller named the pattern."""
    choice = started.choice
    recognised = recognition.probe_ms is not None
    return {
        "pattern": choice.pattern_id or choice.decision,
        "task": choice.task,
        "decision": choice.decision,
        "score": choice.score if recognised else None,
        "reason": choice.reason,
        "retained_mass": finished.retained_mass,
        "numbers": finished.numbers or None,
        "swap": {
            "blobs_loaded": started.swap.blobs_loaded,
            "bytes_loaded": started.swap.bytes_loaded,
            "milliseconds": started.swap.milliseconds,
        },
        "probe_ms": recognition.probe_ms,
        "retrieve_ms": recognition.retrieve_ms,
        "first_token_ms": finished.first_token_ms,
        "decode_ms": finished.decode_ms,
    }


def model(state: WorkerState, created: int) -> Json:
    """One entry of /v1/models."""
    details = {
        "weights_id": state.weights_id,
        "budget": state.budget,
        "allocation": state.allocation,
        "slots_per_layer": state.slots,
        "layer_slots": list(state.layer_slots),
        "split_problem": state.split_problem,
        "experts_per_layer": state.experts,
        "numbers": state.numbers or None,
        "deny": list(state.deny),
    }
    return {
        "id": state.model,
        "object": "model",
        "created": created,
        "owned_by": "premoe",
        "max_model_len": state.context_length,
        "premoe": details,
    }


def status_of(error: PremoeError) -> int:
    """HTTP status of an error."""
    by_class = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    return _STATUS_OF_REASON.get(error.reason, by_class)


def error_body(error: PremoeError) -> Json:
    """OpenAI's error object."""
    status = status_of(error)
    kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
    if status == 429:
        kind = "rate_limit_error"
    param = error.param or None if isinstance(error, BadParameter) else _PARAM_OF_REASON.get(error.reason)
    return {
        "error": {
            "message": _shown(str(error)),
            "type": kind,
            "param": param and _shown(param),
            "code": error.reason.lower(),
        }
    }


def _shown(text: str) -> str:
    """Text that may quote a request: fit for UTF-8, and cut."""
    text = whole_text(text)
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 3] + "..."


def _chunk(
    head: Head, index: int, content: object, finish: str | None, logprobs: Mapping[str, object] | None = None
) -> Json:
    key = "delta" if head.kind == "chat" else "text"
    choice = {"index": index, key: content, "finish_reason": finish, "logprobs": logprobs}
    return {**head.base(chunk=True), "choices": [choice]}
