"""Answers of /v1/responses out of an answer's events: those of a stream, and the whole one that they come to. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from premoe_gateway.domain import Called, Delta, Event, Finished, Recognition, Started, ToolCall
from premoe_gateway.openai.answers import Head, error_body, record, status_of
from premoe_gateway.openai.responses import ResponseOrder
from premoe_runtime.formats.errors import PremoeError

Json = dict[str, Any]


@dataclass(slots=True)
class Writer:
    """One answer on its way: takes its events, says those of the stream, and is the whole answer at the end."""

    head: Head
    order: ResponseOrder
    started: Started
    recognition: Recognition
    response: Json = field(init=False)
    ended: bool = False
    _said: int = 0
    _open: bool = False
    """Whether the last item is a message that may grow, and its text until it is whole:"""
    _pieces: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.response = {
            "id": self.head.id,
            "object": "response",
            "created_at": self.head.created,
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": self.head.model,
            "output": [],
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
            "usage": None,
            **self.order.repeated,
        }

    def opening(self) -> list[Json]:
        """The first events."""
        return [self._response("response.created"), self._response("response.in_progress")]

    def take(self, event: Event) -> list[Json]:
        """What one event of the answer is in its stream."""
        if isinstance(event, Delta) and event.text:
            return [*([] if self._open else self._message()), self._grow(event.text)]
        if isinstance(event, Called):
            return [*self._close("completed"), *self._call(event.call)]
        if isinstance(event, Finished):
            return self._finish(event)
        return []

    def failed(self, error: PremoeError) -> Json:
        """The last event of an answer that a fault ends."""
        if self._open:
            self._join()
        code = "rate_limit_exceeded" if status_of(error) == 429 else "server_error"
        told: Any = error_body(error)["error"]
        self.response |= {"status": "failed", "error": {"code": code, "message": told["message"]}}
        return self._response("response.failed")

    def _finish(self, event: Finished) -> list[Json]:
        cut = event.reason == "length"
        status = "incomplete" if cut else "completed"
        said = [] if self.response["output"] else self._message()
        said += self._close(status)
        self.response |= {
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": {
                "input_tokens": event.prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": event.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": event.prompt_tokens + event.completion_tokens,
            },
            "premoe": record(self.started, event, self.recognition),
        }
        self.ended = True
        return [*said, self._response(f"response.{status}")]

    def _message(self) -> list[Json]:
        self._open, self._pieces = True, []
        added = self._add({"type": "message", "role": "assistant", "content": []}, "msg")
        part: Json = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self._last["content"].append(part)
        return [added, self._of_text("response.content_part.added", part={**part})]

    def _grow(self, text: str) -> Json:
        self._pieces.append(text)
        return self._of_text("response.output_text.delta", delta=text, logprobs=[])

    def _close(self, status: str) -> list[Json]:
        if not self._open:
            return []
        part = self._join()
        self._open = False
        return [
            self._of_text("response.output_text.done", text=part["text"], logprobs=[]),
            self._of_text("response.content_part.done", part=part),
            self._done(status),
        ]

    def _join(self) -> Json:
        part: Json = self._last["content"][0]
        part["text"] = "".join(self._pieces)
        return part

    def _call(self, call: ToolCall) -> list[Json]:
        added = self._add({"type": "function_call", "call_id": call.id, "name": call.name, "arguments": ""}, "fc")
        self._last["arguments"] = call.arguments
        whole = {"name": call.name, "arguments": call.arguments}
        return [
            added,
            self._of_item("response.function_call_arguments.delta", delta=call.arguments),
            self._of_item("response.function_call_arguments.done", **whole),
            self._done("completed"),
        ]

    @property
    def _last(self) -> Json:
        item: Json = self.response["output"][-1]
        return item

    def _add(self, item: Json, prefix: str) -> Json:
        output = self.response["output"]
        name = f"{prefix}_{self.head.id.rpartition('_')[2]}_{len(output)}"
        output.append({"id": name, "status": "in_progress", **item})
        shown = {key: [] if key == "content" else value for key, value in self._last.items()}
        return self._event("response.output_item.added", output_index=len(output) - 1, item=shown)

    def _done(self, status: str) -> Json:
        self._last["status"] = status
        output = self.response["output"]
        return self._event("response.output_item.done", output_index=len(output) - 1, item={**self._last})

    def _of_text(self, kind: str, **fields: object) -> Json:
        return self._of_item(kind, content_index=0, **fields)

    def _of_item(self, kind: str, **fields: object) -> Json:
        last = len(self.response["output"]) - 1
        return self._event(kind, item_id=self._last["id"], output_index=last, **fields)

    def _response(self, kind: str) -> Json:
        return self._event(kind, response={**self.response, "output": [*self.response["output"]]})

    def _event(self, kind: str, **fields: object) -> Json:
        self._said += 1
        return {"type": kind, "sequence_number": self._said - 1, **fields}
