"""One call of a soak from its beginning to its end, whatever that is."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
from premoe.patterns.v1 import patterns_pb2
from premoe.worker.v1 import worker_pb2, worker_pb2_grpc
from support.soak.calls import RESPONSES, Call

LIMIT_S = 120.0
"""A call without an end for so long counts as unanswered."""
LEFT, LATE, FAILED, CUT, UNANSWERED = "left", "deadline", "failed in the stream", "cut", "unanswered"


@dataclass(frozen=True, slots=True)
class Answer:
    """``ended``: why; ``pattern``: under which it ran; ``loaded``: blobs that were swapped in for it."""

    text: str
    ended: str
    pattern: str
    loaded: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Times are CLOCK_MONOTONIC. ``code``: an HTTP status, of an error in a stream too, or a word."""

    call: Call
    began: float
    ended: float
    code: int | str
    said: str = ""
    answer: Answer | None = None


class Client:
    """Sends calls to a gateway, those with deadlines to its worker."""

    def __init__(self, http: httpx.AsyncClient, worker: grpc.aio.Channel, model: str) -> None:
        self._http, self._model = http, model
        self.worker = worker_pb2_grpc.WorkerServiceStub(worker)

    async def send(self, call: Call) -> Outcome:
        """Raises nothing but cancellation."""
        began, answer, said = time.monotonic(), None, ""
        code: int | str = 200
        try:
            async with asyncio.timeout(LIMIT_S if call.leaves_s is None else call.leaves_s):
                code, said, answer = await (self._ask(call) if call.deadline_s is None else self._by_deadline(call))
        except TimeoutError:
            code = UNANSWERED if call.leaves_s is None else LEFT
        except (httpx.HTTPError, ValueError, KeyError) as error:
            code, said = CUT, f"{type(error).__name__}: {error}"
        return Outcome(call, began, time.monotonic(), code, said, answer)

    async def _ask(self, call: Call) -> tuple[int | str, str, Answer | None]:
        content = call.body if isinstance(call.body, str) else json.dumps({"model": self._model, **call.body})
        headers = {"content-type": "application/json"}
        async with self._http.stream("POST", f"/v1/{call.path}", content=content, headers=headers) as response:
            if response.status_code == 200 and call.stream:
                return await _streamed(call, response.aiter_lines())
            document = json.loads(await response.aread())
        if response.status_code != 200:
            return response.status_code, _said(document), None
        return 200, "", _whole(call, document)

    async def _by_deadline(self, call: Call) -> tuple[int | str, str, Answer | None]:
        assert not isinstance(call.body, str)
        (message,) = call.body["messages"]
        request = worker_pb2.GenerateRequest(
            prompt=worker_pb2.Prompt(chat=worker_pb2.Chat(messages=[worker_pb2.Message(**message)])),
            sampling=worker_pb2.Sampling(max_tokens=call.body["max_tokens"]),
            on_unknown=patterns_pb2.ON_UNKNOWN_GENERALIST,
        )
        try:
            async for _ in self.worker.Generate(request, timeout=call.deadline_s):
                pass
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return LATE, "", None
            unavailable = error.code() is grpc.StatusCode.UNAVAILABLE
            return 503 if unavailable else error.code().name, error.details() or "", None
        return 200, "", None


def _whole(call: Call, document: dict[str, Any]) -> Answer:
    ran = document["premoe"]["pattern"], document["premoe"]["swap"]["blobs_loaded"]
    if call.path == RESPONSES:
        return Answer("".join(part["text"] for part in document["output"][0]["content"]), document["status"], *ran)
    (choice,) = document["choices"]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    return Answer(text, choice["finish_reason"], *ran)


async def _streamed(call: Call, lines: AsyncIterator[str]) -> tuple[int | str, str, Answer | None]:
    parts: list[str] = []
    async for line in lines:
        if not line.startswith("data: {"):
            continue
        event = json.loads(line.removeprefix("data: "))
        if call.path == RESPONSES:
            if event["type"] == "response.failed":
                return FAILED, _said(event["response"]), None
            if event["type"] in ("response.completed", "response.incomplete"):
                return 200, "", _whole(call, event["response"])
            continue
        if "error" in event:
            return FAILED, _said(event), None
        for choice in event["choices"]:
            parts.append(choice["delta"].get("content") or "" if "delta" in choice else choice["text"])
            if choice["finish_reason"]:
                ran = event["premoe"]["pattern"], event["premoe"]["swap"]["blobs_loaded"]
                return 200, "", Answer("".join(parts), choice["finish_reason"], *ran)
    return CUT, "the stream ended before the answer did", None


def _said(document: dict[str, Any]) -> str:
    return str((document.get("error") or {}).get("message", ""))
