"""What users of litellm call, in an environment of its own: it wants other packages than ours. Prints JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import litellm  # type: ignore[import-not-found]


def main(url: str, model: str, prompt: str, task: str) -> None:
    """Ask the endpoint at ``url`` in every way."""
    endpoint = {"api_base": f"{url}/v1", "api_key": "none", "num_retries": 0, "timeout": 120}
    chat: dict[str, Any] = {
        **endpoint,
        "model": f"openai/{model}",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": 6,
        "temperature": 0,
    }
    whole = litellm.completion(**chat)
    pieces = list(litellm.completion(**chat, stream=True, stream_options={"include_usage": True}))
    text = litellm.text_completion(
        **endpoint, model=f"text-completion-openai/{model}", prompt=prompt, max_tokens=4, temperature=0
    )
    said = {
        "whole": whole.choices[0].message.content,
        "finish": whole.choices[0].finish_reason,
        "usage": [whole.usage.prompt_tokens, whole.usage.completion_tokens],
        "pieces": [piece.choices[0].delta.content or "" for piece in pieces if piece.choices],
        "streamed usage": [
            [piece.usage.prompt_tokens, piece.usage.completion_tokens]
            for piece in pieces
            if getattr(piece, "usage", None)
        ],
        "awaited": asyncio.run(litellm.acompletion(**chat)).choices[0].message.content,
        "named": litellm.completion(**chat, extra_body={"pattern": task}).choices[0].message.content,
        "text": text.choices[0].text,
        "refusals": [
            refusal(chat | {"model": "openai/other"}),
            refusal(chat | {"messages": [{"role": "user", "content": "x" * 300}]}),
            refusal(chat | {"temperature": 9}),
        ],
    }
    print(json.dumps(said))


def refusal(chat: dict[str, Any]) -> str:
    """The class of what is raised."""
    try:
        litellm.completion(**chat)
    except Exception as error:
        return type(error).__name__
    return ""


if __name__ == "__main__":
    main(*sys.argv[1:])
