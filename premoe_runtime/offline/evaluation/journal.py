"""Answers that were measured before, by what they depend on: lines of other settings do no harm."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import torch

from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.formats.arrays import Mask
from premoe_runtime.offline.evaluation.exam import Answers
from premoe_runtime.offline.evaluation.lines import Lines

FIELDS = {"nll": np.float64, "tokens": np.int64, "kl": np.float64, "mass": np.float64}


class Journal:
    """The file of one evaluation. Raises what ``Lines`` raises."""

    def __init__(self, path: Path) -> None:
        self._lines = Lines(path)
        decoded = {key: answers_in(document) for key, document in self._lines.found.items()}
        self._known = {key: answers for key, answers in decoded.items() if answers is not None}

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Answers:
        return self._known[key]

    def put(self, key: str, answers: Answers) -> None:
        self._known[key] = answers
        self._lines.put(key, document_of(answers))


def key_of(model: SlotModel, test: str, kept: Mask | None, active: int) -> str:
    """What answers depend on: weights, arithmetic, test prompts (their digest), experts. ``kept`` None: all."""
    state = blake3.blake3(json.dumps([model.manifest.weights_id, *arithmetic_of(model), test, active]).encode())
    if kept is not None:
        state.update(np.packbits(kept).tobytes())
    return state.hexdigest()[:32]


def arithmetic_of(model: SlotModel) -> tuple[str, ...]:
    """What the same weights' answers depend on."""
    return str(model.model.dtype), model.device.type, torch.__version__, version("premoe")


def document_of(answers: Answers) -> dict[str, Any]:
    """Answers as JSON holds them."""
    right = "".join("01"[int(hit)] for hit in answers.right)
    return {"right": right, **{name: getattr(answers, name).tolist() for name in FIELDS}}


def answers_in(document: Mapping[str, Any]) -> Answers | None:
    """What a document says; None for one that a person or a full disk has spoilt."""
    try:
        right = np.array([digit == "1" for digit in document["right"]], np.bool_)
        fields: dict[str, Any] = {name: np.array(document[name], dtype) for name, dtype in FIELDS.items()}
    except (ValueError, KeyError, TypeError):
        return None
    return Answers(right, **fields) if all(values.shape == right.shape for values in fields.values()) else None
