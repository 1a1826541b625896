"""Requests that nobody should send, from a seeded generator, and what must hold of every answer."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

DEEP = "[" * 200
SCALARS: list[Any] = [
    None, True, False, 0, 1, -1, 2, 0.0, 0.5, -0.5, 1e308, 2**31, 2**32, 2**63, 2**64, -(2**63) - 1, 10**30, "", "a",
    "0", "text", "\ud83d", "\udc00x", "\x00", "\u2028", "x" * 300, "auto", "none", "user", "task", "p", "full",
    "generalist", {"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}},
    {"format": {"type": "json_schema", "name": "n", "schema": {}}}, {"type": "function", "name": "f"},
    [{"type": "function", "name": "f"}], "function_call", "function_call_output", "input_text",
    "required", [{"type": "function", "function": {"name": "f"}}], {"type": "function", "function": {"name": "f"}},
    [{"id": "c", "function": {"name": "f", "arguments": "{}"}}], "tool", "assistant",
    {"search": {}}, {"search": {"rounds": 1, "vote": "number"}}, {"search": {"verifier": {"type": "exact"}}},
    {"search": {"verifier": {"type": "number", "expected": "1"}}}, {"search": {"verifier": "exact"}},
    {"type": "model", "name": "m"}, {"type": "exact", "expected": "hi"},
]  # fmt: skip
NAMES = [
    "model", "messages", "prompt", "stream", "stream_options", "temperature", "top_p", "top_k", "stop", "seed", "n",
    "max_tokens", "max_completion_tokens", "pattern", "active_experts", "logprobs", "top_logprobs", "tools", "echo",
    "tool_choice", "response_format", "logit_bias", "presence_penalty", "frequency_penalty", "suffix", "best_of",
    "user", "metadata", "store", "service_tier", "reasoning_effort", "modalities", "audio", "prediction", "verbosity",
    "parallel_tool_calls", "functions", "function_call", "role", "content", "type", "text", "include_usage",
    "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids", "tokens", "add_special_tokens",
    "add_generation_prompt", "return_token_strs", "tool_calls", "refusal", "name", "cache_control", "image_url",
    "input", "instructions", "max_output_tokens", "previous_response_id", "background", "conversation", "truncation",
    "include", "reasoning", "call_id", "output", "format",
    "json_schema", "schema", "strict", "tool_call_id", "function", "parameters", "arguments", "description", "id",
    "deny", "premoe", "search", "verifier", "expected", "rounds", "\ud800", "",
]  # fmt: skip
HEADERS = [
    b"application/json", b"application/json; charset=utf-8", b"text/plain", b"", b"\xff\xfe",
    b"application/x-www-form-urlencoded",
]  # fmt: skip
PATHS = [
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/models", "/v1/models/m",
    "/v1/models/\udcff", "/v1/models/\u2028",
    "/health", "/healthz", "/ready", "/version", "/openapi.json", "/tokenize", "/detokenize", "/",
    "/v1", "/v1/chat/completions/", "/v1/embeddings",
    "/\ud800",
]  # fmt: skip
METHODS = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "nonsense"]


def value(draw: random.Random, depth: int = 0) -> Any:
    """Any JSON, mostly small."""
    kind = draw.random()
    if depth > 3 or kind < 0.6:
        return copy.deepcopy(draw.choice(SCALARS))  # callers change what they get
    if kind < 0.8:
        return [value(draw, depth + 1) for _ in range(draw.randrange(6))]
    return {draw.choice(NAMES): value(draw, depth + 1) for _ in range(draw.randrange(5))}


def body(draw: random.Random, path: str, model: str) -> bytes:
    """A good request with some of its fields exchanged; at times its bytes are broken too."""
    most = "max_output_tokens" if "responses" in path else "max_tokens"
    good: dict[str, Any] = {"model": model} if "token" in path else {"model": model, most: 2}
    if path == "/detokenize":
        good["tokens"] = [104, 105]
    elif "chat" in path:
        parts = [{"type": "text", "text": "part"}]
        good["messages"] = [{"role": "user", "content": draw.choice(["hi", parts])}]
    elif "responses" in path:
        parts = [{"type": "input_text", "text": "part"}]
        call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
        output = {"type": "function_call_output", "call_id": "c", "output": draw.choice(["hi", parts])}
        good["input"] = draw.choice(["hi", [{"role": "user", "content": parts}], [call, output]])
        if isinstance(good["input"], list) and draw.random() < 0.3:
            draw.choice(good["input"])[draw.choice(NAMES)] = value(draw)
    else:
        good["prompt"] = draw.choice(["hi", [1, 2], ["hi"], [[1]]])
    for _ in range(draw.randrange(4)):
        good[draw.choice(NAMES)] = value(draw)
    if "messages" in good and draw.random() < 0.3 and isinstance(good["messages"], list):
        good["messages"].insert(0, {"role": draw.choice(["user", "assistant", value(draw)]), "content": value(draw)})
        good["messages"][0][draw.choice(NAMES)] = value(draw)
    data = json.dumps(good).encode()
    broken = draw.random()
    if broken < 0.05:
        cut = draw.randrange(len(data))
        return data[:cut] + bytes([draw.randrange(256)]) + data[cut + draw.randrange(3) :]
    if broken < 0.06:
        return data.replace(b'"hi"', draw.choice([b"NaN", b"1e999", b"-Infinity", (DEEP * 20).encode(), b"1" * 5000]))
    return data


def check(status: int, headers: dict[bytes, bytes], answer: bytes, method: str) -> None:
    """In OpenAI's shape, or an answer."""
    assert status < 500
    text = answer.decode()
    assert "Traceback" not in text
    if status == 200 and headers[b"content-type"].startswith(b"text/event-stream"):
        if text.startswith("event: "):
            said = [json.loads(line.removeprefix("data: ")) for line in text.split("\n") if line.startswith("data: ")]
            assert [event["sequence_number"] for event in said] == list(range(len(said)))
            assert said[-1]["type"] in ("response.completed", "response.incomplete")
            return
        events = [line.removeprefix("data: ") for line in text.splitlines() if line]
        assert events[-1] == "[DONE]"
        assert all("choices" in json.loads(event) for event in events[:-1])
        return
    assert headers[b"content-type"] == b"application/json"
    if method == "HEAD":
        return
    document = json.loads(text)
    if status == 200:
        return
    error = document["error"]
    assert error["message"]
    assert len(error["message"]) <= 500
    assert error["type"] == "invalid_request_error"
    for leak in (
        "Input should",
        "pydantic",
        "premoe_",
        "_Chat",
        "_Completion",
        "ResponseBody",
        "instance of",
        "Error(",
    ):
        assert leak not in error["message"]
