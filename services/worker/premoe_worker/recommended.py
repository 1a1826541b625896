"""How the checkpoint's authors want tokens chosen: the sampling settings of generation_config.json."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, Protocol

from premoe_runtime.engines.params import SamplingParams
from premoe_runtime.families.registry import parse_json_object
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import Manifest

log = logging.getLogger(__name__)

FILE = "skeleton/generation_config.json"
_HONOURED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_OTHERS = {"typical_p": 1, "no_repeat_ngram_size": 0}
"""Settings that change answers and are not supported, with the values that ask for nothing."""


class Source(Protocol):
    """What is read."""

    def manifest(self) -> Manifest: ...

    def read_file(self, path: str) -> bytes: ...


def recommended_sampling(source: Source) -> SamplingParams:
    """Temperature 1 with nothing cut off, but for what the file says. What cannot be honoured is logged, once.

    As other servers do, ``do_sample`` is passed over: it is the default of a library, not advice.
    """
    found = SamplingParams(temperature=1.0)
    if not any(file.path == FILE for file in source.manifest().skeleton):
        return found
    try:
        document = parse_json_object(source.read_file(FILE), FILE)
    except InvalidInput:
        log.warning("generation_config.json is no JSON object; its sampling settings do not hold")
        return found
    for name in _HONOURED:
        found = _with(found, name, document.get(name))
    ignored = [name for name, nothing in _OTHERS.items() if document.get(name, nothing) not in (nothing, None)]
    if ignored:
        log.warning("generation_config.json sets %s, which this server does not support", ", ".join(ignored))
    return found


def _with(sampling: SamplingParams, name: str, value: Any) -> SamplingParams:
    if value is None:
        return sampling
    kind = int if name == "top_k" else float
    try:
        if isinstance(value, bool) or not isinstance(value, int | float) or kind(value) != value:
            raise InvalidInput("not a number of its kind", reason="SAMPLING_INVALID")
        fields: dict[str, Any] = {name: kind(value)}
        changed = replace(sampling, **fields)
        changed.check()
    except (InvalidInput, OverflowError, ValueError):
        log.warning("generation_config.json: %s is %.40r, which cannot be; it does not hold", name, value)
        return sampling
    return changed
