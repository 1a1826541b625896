"""Training an upcycled model before it is written: experts that began as copies part, under a Dirichlet prior or none.

It needs the whole model in memory (``Student``), and room in the work folder for it twice: as a checkpoint and a pack.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from premoe_runtime.compress.method import Job, Quiet, Report
from premoe_runtime.compress.methods import shape
from premoe_runtime.compress.result import Compressed
from premoe_runtime.compress.share import Share
from premoe_runtime.compress.upcycling.plan import Made, Planned
from premoe_runtime.compress.upcycling.weights import Content, DenseWeights
from premoe_runtime.compress.upcycling.writer import write
from premoe_runtime.compress.weights import ExpertWeights, PackWeights
from premoe_runtime.offline.calibration import Example
from premoe_runtime.packs.contents import stored_names
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.packs.source import Source, open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import open_store


def trained(
    source: Source,
    planned: Planned,
    data: Mapping[str, Sequence[Example]],
    settings: shape.Settings,
    work: Path,
    *,
    device: str = "cpu",
    threads: int | None = None,
    report: Report | None = None,
) -> tuple[Content, dict[str, object]]:
    """What the trained model's tensors hold, and what that depends on, for ``write``.

    Raises what ``write`` and packing raise, and InvalidInput for data or settings that training cannot take.
    """
    checkpoint = work / "checkpoint"
    if not (checkpoint / "config.json").is_file():
        write(source, planned, DenseWeights(source.store, planned.what), str(checkpoint))
    old = PackWeights(open_pack(write_pack(open_source(str(checkpoint)), open_store(str(work / "packs"))).url))
    job = Job(old, data, Share(1.0), settings, work, planned.what.seed, device, threads, report or Quiet())
    shape.METHOD.check(job)
    facts: dict[str, object] = {"settings": dataclasses.asdict(settings), "data": job.data_digests}
    return _Trained(old, shape.METHOD.compress(job)), facts


class _Trained:
    """Reads what training left in the work folder; a layer's experts are in memory at a time."""

    def __init__(self, old: PackWeights, new: Compressed) -> None:
        self._new, self._names = new, stored_names(old.model)
        self._layer: tuple[int, ExpertWeights | None] = (-1, None)

    def __call__(self, made: Made) -> Tensor | None:
        if made.part is None:
            one = self._new.tensors.get(self._names.get(made.stored.name, made.stored.name))
            return None if one is None else one()
        if made.part == "router":
            return self._new.router(made.layer).weight
        if self._layer[0] != made.layer:
            self._layer = (-1, None)  # two layers are never in memory
            self._layer = made.layer, self._new.weights(made.layer)
        experts = self._layer[1]
        assert experts is not None
        matrices: dict[str, Tensor] = {"gate": experts.gate, "up": experts.up, "down": experts.down}
        return matrices[made.part][made.expert]
