"""lm-evaluation-harness on an OpenAI endpoint of ours, every request under one pattern.

python -m premoe_local.evaluation.endpoint run --model premoe --model_args pattern=math,… --tasks …

Imports nothing of ours, so that it also works where only lm_eval and this file are.
"""

from __future__ import annotations

from typing import Any

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model
from lm_eval.models.openai_completions import LocalCompletionsAPI


@register_model("premoe")
class PremoeCompletions(LocalCompletionsAPI):  # type: ignore[misc]
    """The library's ``local-completions`` with what it cannot send with likelihoods: bodies of our own fields.

    ``pattern``: a task, a pattern's id, ``generalist`` or ``full``; without it every prompt is recognised.
    """

    def __init__(self, pattern: str = "", active_experts: int | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        named = {"pattern": pattern, "active_experts": active_experts}
        self._ours = {name: value for name, value in named.items() if value}

    def _create_payload(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        return {**super()._create_payload(*arguments, **named), **self._ours}


if __name__ == "__main__":
    cli_evaluate()
