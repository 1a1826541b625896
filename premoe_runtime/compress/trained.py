"""A student's weights in files, a layer each, and the smaller model that they make."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import blake3
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from premoe_runtime.compress.config import width_of
from premoe_runtime.compress.result import Compressed
from premoe_runtime.compress.student import Student
from premoe_runtime.compress.weights import ExpertWeights, PackWeights

REST = "rest.safetensors"


def keep(student: Student, folder: Path) -> None:
    """Write what was trained into ``folder``, whole or not at all; a layer's experts are in memory at a time."""
    unfinished = folder.with_suffix(".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for layer in range(student.old.manifest.num_layers):
        names = [name for name in student.names if name.startswith(f"experts.{layer}.")]
        if names:
            tensors = {name.split(".")[2]: student.tensor(name).cpu().contiguous() for name in names}
            save_file(tensors, unfinished / _layer_file(layer))
    others = [name for name in student.names if not name.startswith("experts.")]
    save_file({name: student.tensor(name).cpu().contiguous() for name in others}, unfinished / REST)
    unfinished.replace(folder)


def kept(folder: Path, old: PackWeights) -> Compressed:
    """The model that ``keep`` wrote of a student of ``old``; it reads the files when weights are asked for."""
    whole = blake3.blake3(old.manifest.model_id.encode())
    for path in sorted(folder.iterdir()):
        whole.update(path.name.encode()).update_mmap(path)
    with safe_open(folder / REST, framework="pt") as file:
        trained = set(file.keys())
    return Compressed(
        experts=old.manifest.layer_experts,
        width=width_of(old.model),
        router=partial(old.router, read=partial(_tensor, folder, trained, old)),
        weights=partial(_weights, folder, old),
        key=whole.hexdigest(),
        tensors={name: partial(_tensor, folder, trained, old, name) for name in sorted(trained - old.routers)},
    )


def _weights(folder: Path, old: PackWeights, layer: int) -> ExpertWeights:
    path = folder / _layer_file(layer)
    if not path.is_file():
        return old.experts(layer)
    fields = load_file(path)
    gate, up = fields["gate_up"].chunk(2, dim=1)
    if "gate_up_bias" not in fields:
        return ExpertWeights(gate, up, fields["down"])
    gate_bias, up_bias = fields["gate_up_bias"].chunk(2, dim=1)
    return ExpertWeights(gate, up, fields["down"], gate_bias, up_bias, fields["down_bias"])


def _tensor(folder: Path, trained: set[str], old: PackWeights, name: str) -> Tensor:
    if name not in trained:
        return old.tensor(name)
    with safe_open(folder / REST, framework="pt") as file:
        found: Tensor = file.get_tensor(name)
    return found


def _layer_file(layer: int) -> str:
    return f"layer-{layer:03d}.safetensors"
