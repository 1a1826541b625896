"""`chat_template_kwargs`: what a request says to the model's own chat template, in vLLM's form."""

from __future__ import annotations

import json

from premoe_servicekit.template_arguments import fault_of
from premoe_servicekit.texts import whole_text

from premoe_gateway.openai.faults import BadParameter

FIELD = "chat_template_kwargs"


def parse_template_arguments(given: object) -> str:
    """A JSON object; empty: there are none. Whether the template reads them is for the worker to say.

    Raises BadParameter.
    """
    if given is None:
        return ""
    if isinstance(given, dict):
        given = {_whole(name): _whole(value) for name, value in given.items() if value is not None}
    if fault := fault_of(given):
        raise BadParameter(f"{FIELD}: {fault}", FIELD)
    return json.dumps(given, sort_keys=True) if given else ""


def _whole(value: object) -> object:
    return whole_text(value) if isinstance(value, str) else value
