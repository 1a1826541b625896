"""Answers that were measured before, by what they depend on: one JSON object a line of a file that only grows.

A line is written whole and reaches the disk before the next cell begins, so what a kill leaves is every finished cell
and at most one torn line, which is cut off. Lines of other settings do no harm: their keys are others.
"""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import torch

from premoe_runtime.engines.hf.model import SlotModel
from premoe_runtime.formats.arrays import Mask
from premoe_runtime.offline.evaluation.exam import Answers
from premoe_runtime.storage.failures import mapped_errors

FIELDS = {"nll": np.float64, "tokens": np.int64, "kl": np.float64, "mass": np.float64}


class Journal:
    """The file of one evaluation. Raises InvalidInput, Exhausted or Unavailable like any write to a disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Answers] = {}
        with mapped_errors(str(path)):
            path.touch()
            data = path.read_bytes()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                os.truncate(path, whole)
        for line in data[:whole].splitlines():
            found = _decode(line)
            if found is not None:
                self._known[found[0]] = found[1]

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Answers:
        return self._known[key]

    def put(self, key: str, answers: Answers) -> None:
        self._known[key] = answers
        with mapped_errors(str(self._path)), self._path.open("ab") as file:
            file.write(_encode(key, answers))
            file.flush()
            os.fsync(file.fileno())


def key_of(model: SlotModel, test: str, kept: Mask | None, active: int) -> str:
    """What answers depend on: weights, arithmetic, test prompts (their digest), experts. ``kept`` None: all."""
    arithmetic = [str(model.model.dtype), model.device.type, torch.__version__, version("premoe")]
    state = blake3.blake3(json.dumps([model.manifest.weights_id, *arithmetic, test, active]).encode())
    if kept is not None:
        state.update(np.packbits(kept).tobytes())
    return state.hexdigest()[:32]


def _encode(key: str, answers: Answers) -> bytes:
    document = {name: getattr(answers, name).tolist() for name in FIELDS}
    right = "".join("01"[int(hit)] for hit in answers.right)
    return json.dumps({"key": key, "right": right, **document}).encode() + b"\n"


def _decode(line: bytes) -> tuple[str, Answers] | None:
    """What a line says; None for one that a person or a full disk has spoilt."""
    try:
        document = json.loads(line)
        right = np.array([digit == "1" for digit in document["right"]], np.bool_)
        fields: dict[str, Any] = {name: np.array(document[name], dtype) for name, dtype in FIELDS.items()}
        if any(values.shape != right.shape for values in fields.values()):
            return None
        return str(document["key"]), Answers(right, **fields)
    except (ValueError, KeyError, TypeError):
        return None
