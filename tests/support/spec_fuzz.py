"""Seeded specs, valid and not: a valid one in which some places are set to something else that the schema suggests."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable
from typing import Any

from support.pruned_models import COMMIT, FULL, MODEL_ID, SMALLEST, Document, changed

Schema = dict[str, Any]

BASES: tuple[Document, ...] = (
    SMALLEST,
    FULL,
    {"model": {"uri": "hf://org/name", "revision": COMMIT}, "budget": "8/64", "suspend": True},
    changed(
        FULL,
        {"model": {"uri": "pvc://claim/folder"}, "access.tls": {"mode": "Mutual", "secretName": "own"}},
    ),
    changed(SMALLEST, {"patterns": FULL["patterns"], "engine.slots": 65536, "workers.rollout.type": "Recreate"}),
)

TEXTS = (
    *("", "a", "x-1", "code", "maths", "A", "a.b", "1", "-", "a..b", "a b", "é", "a\nb", "../x", "x" * 63, "x" * 64),
    *("2/4", "1/1", "8/64", "4/2", "0/4", "99999/99999", "1", "500m", "2Gi", "0", "1.5Gi", "0.5", "1.0", "2"),
    *(COMMIT, COMMIT[:39], MODEL_ID, "sha256:" + "0" * 64, "true", "null", "{{ .Values.x }}", "$(HOME)"),
    *("hf://org/name", "hf://org", "s3://bucket", "s3://bucket/key/below", "pvc://claim/folder", "file:///etc/passwd"),
    *("http://collector:4317", "https://collector/v1", "http://collector:70000", "grpc://collector"),
    *("cuda", "cuda:3", "cpu", "nvidia.com/gpu", "a.test/b-c", "app.kubernetes.io/name", "premoe.dev/model", "memory"),
    *("registry.test/worker:1", "registry.test/worker@sha256:" + "0" * 64, "UPPER", "NoSchedule"),
)
NUMBERS = (-1, 0, 1, 2, 8, 63, 64, 65, 600, 1800, 65535, 65536, 2**31 - 1, 2**31, 2**63 - 1)
JUNK: tuple[Any, ...] = (None, True, 1.5, -7, "junk", "x" * 600, [], [1], {}, {"a": "b"})
POD_TEMPLATES: tuple[Document, ...] = (
    {},
    {"spec": {"dnsPolicy": "Default"}},
    {"spec": {"affinity": {"nodeAffinity": {}}}},
    {"spec": {"hostNetwork": True}},
    {"metadata": {"labels": {"premoe.dev/model": "x"}}},
    {"spec": {"containers": [{"name": "premoe-worker", "env": [{"name": "MORE", "value": "1"}]}]}},
)


def fuzzed_spec(seed: int, schema: Schema) -> Any:
    """The spec of a seed: a base with up to four places changed, each mostly to what the schema allows."""
    rng = random.Random(seed)
    spec = copy.deepcopy(rng.choice(BASES))
    for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 4))):
        _mutate(rng, schema, spec)
    return spec


def _mutate(rng: random.Random, schema: Schema, place: Document) -> None:
    """Walk down to some field, there or not, and set it."""
    name, below = rng.choice(list(schema["properties"].items()))
    found = place.get(name)
    if below["type"] == "object" and "properties" in below and rng.random() < 0.9:
        if not isinstance(found, dict):
            found = place[name] = {}
        _mutate(rng, below, found)
    elif below["type"] == "array" and isinstance(found, list) and found and rng.random() < 0.5:
        item = rng.choice(found)
        if isinstance(item, dict):
            _mutate(rng, below["items"], item)
    elif rng.random() < 0.1:
        place.pop(name, None)
    else:
        place[name] = _value(rng, below)


def _value(rng: random.Random, schema: Schema) -> Any:
    if rng.random() < 0.05:
        return copy.deepcopy(rng.choice(JUNK))
    return _MAKERS[schema["type"]](rng, schema)


def _text(rng: random.Random, schema: Schema) -> str:
    if "enum" in schema:
        choices: list[str] = [*schema["enum"], *schema["enum"], "Other"]
        return rng.choice(choices)
    fitting = [text for text in TEXTS if _fits(text, schema)]
    return rng.choice(fitting if fitting and rng.random() < 0.85 else TEXTS)


def _fits(text: str, schema: Schema) -> bool:
    lengths = schema.get("minLength", 0) <= len(text) <= schema.get("maxLength", len(text))
    return lengths and re.search(schema.get("pattern", ""), text) is not None


def _number(rng: random.Random, schema: Schema) -> int:
    lowest: int = schema.get("minimum", 0)
    highest: int = schema.get("maximum", 2**31)
    fitting = [lowest, highest, rng.randint(lowest, highest), *(n for n in NUMBERS if lowest <= n <= highest)]
    return rng.choice(fitting if rng.random() < 0.85 else [*NUMBERS, lowest - 1, highest + 1])


def _list(rng: random.Random, schema: Schema) -> list[Any]:
    length = schema["maxItems"] + 1 if rng.random() < 0.03 else rng.choice((0, 1, 1, 2, 3))
    return [_value(rng, schema["items"]) for _ in range(length)]


def _object(rng: random.Random, schema: Schema) -> Any:
    if "additionalProperties" in schema:
        return {rng.choice(TEXTS): _value(rng, schema["additionalProperties"]) for _ in range(rng.choice((0, 1, 2)))}
    if "properties" not in schema:
        return copy.deepcopy(rng.choice(POD_TEMPLATES))
    required = schema.get("required", ())
    return {
        name: _value(rng, below)
        for name, below in schema["properties"].items()
        if name in required or rng.random() < 0.4
    }


_MAKERS: dict[str, Callable[[random.Random, Schema], Any]] = {
    "array": _list,
    "boolean": lambda rng, schema: rng.random() < 0.5,
    "integer": _number,
    "object": _object,
    "string": _text,
}
