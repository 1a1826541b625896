"""Online half of the demo: prompts of every kind through the gateway's OpenAI API, one after another."""

from __future__ import annotations

import json
import random
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from premoe_local import tasks
from premoe_runtime.formats.errors import Unavailable

EXACT_TOKENS = 96
"""Longer than any exact answer."""
OPEN_TOKENS = 16
"""Open text has no end of its own; this much shows the speed."""
_TIMEOUT_S = 120.0
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""The gateway is on this machine, whatever proxy the environment names."""
_SEED = 20


@dataclass(frozen=True, slots=True)
class Served:
    """One request and what came back."""

    example: tasks.Example
    decision: str
    nearest: str
    """Nearest stored task, recognised or not."""
    score: float
    blobs_loaded: int
    bytes_loaded: int
    swap_ms: float
    tokens_per_s: float
    answer: str

    @property
    def recognised(self) -> bool:
        return self.decision == "specialist"

    @property
    def correct(self) -> bool | None:
        """Whether the answer is exactly right; None where there is no one right answer."""
        if self.example.task in tasks.OPEN or self.example.task not in tasks.TRAINED:
            return None
        return tasks.check(self.example, self.answer)


def plan_prompts(per_task: int) -> list[tasks.Example]:
    """Unseen prompts: ``per_task`` of every stored task, half as many of every unknown one, in a fixed random order."""
    counts = dict.fromkeys(tasks.STORED, per_task) | dict.fromkeys(tasks.UNKNOWN, max(1, per_task // 2))
    prompts = [example for task, count in counts.items() for example in tasks.examples(task, "test", count, _SEED)]
    random.Random(_SEED).shuffle(prompts)
    return prompts


def ask(url: str, model: str, example: tasks.Example) -> Served:
    """Send one prompt, greedily decoded. Raises Unavailable when the gateway refuses it."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": example.prompt}],
        "temperature": 0,
        "max_tokens": EXACT_TOKENS if example.task in tasks.EXACT else OPEN_TOKENS,
    }
    document = _post(f"{url}/v1/chat/completions", body)
    record, usage = document["premoe"], document["usage"]
    later_tokens = usage["completion_tokens"] - 1
    return Served(
        example=example,
        decision=record["decision"],
        nearest=record["task"],
        score=record["score"],
        blobs_loaded=record["swap"]["blobs_loaded"],
        bytes_loaded=record["swap"]["bytes_loaded"],
        swap_ms=record["swap"]["milliseconds"],
        tokens_per_s=later_tokens / record["decode_ms"] * 1e3 if record["decode_ms"] > 0 else 0.0,
        answer=document["choices"][0]["message"]["content"],
    )


def _post(url: str, body: dict[str, object]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with _OPENER.open(request, timeout=_TIMEOUT_S) as response:
            document: dict[str, Any] = json.load(response)
            return document
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")
        raise Unavailable(f"the gateway answered {error.code}: {text}", reason="DEMO_REFUSED") from error
    except OSError as error:
        raise Unavailable(f"the gateway does not answer: {error}", reason="DEMO_REFUSED") from error
