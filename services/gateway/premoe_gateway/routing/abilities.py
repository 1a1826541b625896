"""What a request needs a worker to know: those of an older version pass over fields that they do not know."""

from __future__ import annotations

from premoe_servicekit.abilities import Ability

from premoe_gateway.domain import Ask, Sampling, Turn


def needs(ask: Ask) -> frozenset[Ability]:
    """Beyond a plain answer."""
    wanted = ask.sampling
    turns = [] if isinstance(ask.prompt, str) else [turn for turn in ask.prompt if isinstance(turn, Turn)]
    asked: dict[Ability, bool] = {
        "chat_template_kwargs": bool(ask.template_arguments),
        "deny": bool(ask.deny),
        "end_tokens": bool(wanted.min_tokens or wanted.ignore_eos or wanted.stop_token_ids),
        "logprobs": wanted.logprobs is not None or wanted.prompt_logprobs is not None,
        "min_p": bool(wanted.min_p),
        "penalties": _has_penalties(wanted),
        "priority": bool(ask.priority),
        "response_format": ask.format is not None,
        "tools": bool(ask.tools.offered) or any(turn.tool_calls or turn.tool_call_id for turn in turns),
    }
    return frozenset(ability for ability, needed in asked.items() if needed)


def _has_penalties(wanted: Sampling) -> bool:
    repetition = wanted.repetition_penalty not in (None, 1.0)
    return bool(wanted.presence_penalty or wanted.frequency_penalty or wanted.logit_bias or repetition)
