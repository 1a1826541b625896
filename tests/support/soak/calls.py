"""What the clients of a soak ask for: calls whose answers are known before the load, new ones, and wrong ones."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from premoe_local import tasks

CHAT, TEXT, RESPONSES = "chat/completions", "completions", "responses"
LONG_TOKENS, SHORT_TOKENS = 160, 24
CONTEXT = 512
_BOOLEAN = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
_SHAPE = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": _BOOLEAN}}


@dataclass(frozen=True, slots=True)
class Call:
    """One request. ``name``: of its answer, which depends on the pattern alone; empty for one that nobody knows.

    ``body``: fields without the model; text stands for a body that is no JSON. ``status``: what it must be answered
    with. ``leaves_s``: seconds after which its client goes away. ``deadline_s``: it goes to the worker itself, by gRPC,
    with so long a deadline.
    """

    name: str
    path: str
    body: Mapping[str, Any] | str
    status: int = 200
    leaves_s: float | None = None
    deadline_s: float | None = None

    @property
    def stream(self) -> bool:
        return not isinstance(self.body, str) and bool(self.body.get("stream"))


def known_calls(names: Sequence[str], each: int) -> list[Call]:
    """Greedy or seeded, ``each`` a task: short, long, shaped, on all paths, recognised and with a named pattern."""
    # Prompts of the last are no stored task's.
    prompts = [one.prompt for task in (*names, "sub") for one in tasks.examples(task, "test", each)]
    found = [_known(f"prompt {number}", prompt, number) for number, prompt in enumerate(prompts)]
    strangers = tasks.examples("log", "test", 2)
    found.append(Call("long", CHAT, _chat(" ".join(one.prompt for one in strangers)[:360], max_tokens=LONG_TOKENS)))
    found.append(Call("shaped", CHAT, _chat(strangers[0].prompt, max_tokens=60, response_format=_SHAPE)))
    return found


def _known(name: str, prompt: str, number: int) -> Call:
    seeded = {"temperature": 0.9, "seed": number}
    match number % 6:
        case 0:
            return Call(name, CHAT, _chat(prompt))
        case 1:
            return Call(name, CHAT, _chat(prompt, pattern="generalist", **seeded))
        case 2:
            return Call(name, TEXT, {"prompt": prompt, "temperature": 0, "max_tokens": SHORT_TOKENS})
        case 3:
            return Call(name, CHAT, _chat(prompt, ignore_eos=True, max_tokens=LONG_TOKENS, priority=1))
        case 4:
            return Call(name, RESPONSES, {"input": prompt, "temperature": 0, "max_output_tokens": SHORT_TOKENS})
        case _:
            earlier = [{"role": "user", "content": prompt}, {"role": "assistant", "content": "Yes."}]
            return Call(name, CHAT, {**_chat(prompt, **seeded), "messages": [*earlier, *_chat(prompt)["messages"]]})


def _chat(prompt: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {"messages": messages, "temperature": 0, "max_tokens": SHORT_TOKENS, **fields}


WRONG = (
    Call("", CHAT, _chat("x", model="nobody"), 404),
    Call("", CHAT, _chat("x", pattern="f" * 64), 404),
    Call("", CHAT, _chat("x", temperature=-1), 400),
    Call("", CHAT, _chat("x", max_tokens=1_000_000), 400),
    Call("", CHAT, _chat("too long " * 2_000), 400),
    Call("", CHAT, {"messages": []}, 400),
    Call("", TEXT, {"prompt": "x", "suffix": "y"}, 400),
    Call("", RESPONSES, {"input": "x", "previous_response_id": "resp_1"}, 400),
    Call("", CHAT, "{", 400),
    Call("", "nothing", {}, 404),
)
"""Refused, whatever else goes on."""


def draw(source: random.Random, known: Sequence[Call]) -> Call:
    """The next call of a client: half are known, of the rest some are left, new, wrong or bound by a deadline."""
    kind = source.random()
    if kind < 0.1:
        return source.choice(WRONG)
    if kind < 0.2:
        prompt = " ".join(str(source.randrange(10**6)) for _ in range(source.choice((2, 12, 30))))
        return _streamed(source, Call("", CHAT, _chat(prompt, temperature=1.0)))
    call = _streamed(source, source.choice(known))
    if kind < 0.3:
        return Call(
            "", CHAT, _chat("3 + 4", max_tokens=LONG_TOKENS, ignore_eos=True), deadline_s=source.uniform(0.02, 1)
        )
    if kind < 0.5:
        return replace(call, leaves_s=source.uniform(0.0, 1.5))
    return call


def _streamed(source: random.Random, call: Call) -> Call:
    if isinstance(call.body, str) or source.random() < 0.5:
        return call
    return replace(call, body={**call.body, "stream": True})
