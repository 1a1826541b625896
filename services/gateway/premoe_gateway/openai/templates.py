"""`chat_template_kwargs`: what a request says to the model's own chat template, in vLLM's form."""

from __future__ import annotations

import json
from typing import Literal

from premoe_servicekit.template_arguments import fault_of
from premoe_servicekit.texts import whole_text

from premoe_gateway.openai.faults import BadParameter

FIELD = "chat_template_kwargs"
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
"""OpenAI's `reasoning_effort`. "none" asks for nothing."""


def parse_template_arguments(given: object, effort: Effort | None = None) -> str:
    """A JSON object; empty: there are none. Whether the template reads them is for the worker to say.

    ``effort`` is one of them, unless they say another. Raises BadParameter.
    """
    given = {} if given is None else given
    if effort not in (None, "none") and isinstance(given, dict):
        given = {"reasoning_effort": effort, **given}
    if isinstance(given, dict):
        given = {_whole(name): _whole(value) for name, value in given.items() if value is not None}
    if fault := fault_of(given):
        raise BadParameter(f"{FIELD}: {fault}", FIELD)
    return json.dumps(given, sort_keys=True) if given else ""


def _whole(value: object) -> object:
    return whole_text(value) if isinstance(value, str) else value
