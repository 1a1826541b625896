"""OpenAI answer bodies out of an answer's events. Pure: values in, JSON-able dictionaries out.

Beside OpenAI's own fields every answer carries one object `premoe`: which pattern ran and why, how much of the
router's probability mass it kept, and what had to be moved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from premoe_gateway.domain import Finished, Recognition, Started, WorkerState
from premoe_gateway.openai_requests import BadParameter, whole_text
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

_FINISH = {"stop": "stop", "length": "length", "cancelled": "stop"}
_STATUS: tuple[tuple[type[PremoeError], int], ...] = (
    (InvalidInput, 400),
    (NotFound, 404),
    (Conflict, 400),  # clients send a 409 again, and again
    (CorruptData, 500),
    (Unavailable, 503),
    (Exhausted, 429),
)
_STATUS_OF_REASON = {"UNKNOWN_TASK": 422, "DEADLINE_EXCEEDED": 504, "BODY_TOO_LARGE": 413, "MEDIA_TYPE": 415}
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


def whole(head: Head, text: str, started: Started, finished: Finished, recognition: Recognition) -> Json:
    """A complete answer, for requests that do not stream."""
    choice: Json = {"index": 0, "finish_reason": _FINISH[finished.reason], "logprobs": None}
    if head.kind == "chat":
        choice["message"] = {"role": "assistant", "content": text, "refusal": None}
    else:
        choice["text"] = text
    return {
        **head.base(chunk=False),
        "choices": [choice],
        "usage": usage(finished),
        "premoe": record(started, finished, recognition),
    }


def opening(head: Head) -> Json | None:
    """The first chunk of a chat names the role; a text completion has none."""
    return _chunk(head, {"role": "assistant", "content": ""}, None) if head.kind == "chat" else None


def piece(head: Head, text: str) -> Json:
    """A chunk of text."""
    return _chunk(head, {"content": text} if head.kind == "chat" else text, None)


def closing(head: Head, started: Started, finished: Finished, recognition: Recognition) -> Json:
    """The chunk that carries the finish reason and the `premoe` object."""
    chunk = _chunk(head, {} if head.kind == "chat" else "", _FINISH[finished.reason])
    return {**chunk, "premoe": record(started, finished, recognition)}


def usage_chunk(head: Head, finished: Finished) -> Json:
    """The extra last chunk that `stream_options.include_usage` asks for."""
    return {**head.base(chunk=True), "choices": [], "usage": usage(finished)}


def usage(finished: Finished) -> Json:
    total = finished.prompt_tokens + finished.completion_tokens
    return {
        "prompt_tokens": finished.prompt_tokens,
        "completion_tokens": finished.completion_tokens,
        "total_tokens": total,
    }


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
    param = error.param or None if isinstance(error, BadParameter) else None
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


def _chunk(head: Head, content: object, finish: str | None) -> Json:
    key = "delta" if head.kind == "chat" else "text"
    choice = {"index": 0, key: content, "finish_reason": finish, "logprobs": None}
    return {**head.base(chunk=True), "choices": [choice]}
