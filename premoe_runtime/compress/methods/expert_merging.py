"""Several fine-tunes of one base in one pack: Expert Merging and Expert Merging++, arXiv 2509.25712."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from math import isfinite

import torch
from torch import Tensor

from premoe_runtime.compress.coefficients import Learning, Lessons, learnt, weights_of
from premoe_runtime.compress.method import Job, Method, setting
from premoe_runtime.compress.mixing import Mix, laid_out, parts_of
from premoe_runtime.compress.result import Compressed
from premoe_runtime.compress.weights import PackWeights
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.packs.reader import open_pack

RELATED = 0.5
"""Least cosine of the matrices of a base and a fine-tune: those of models trained apart have about 0."""
TOKENIZER = "skeleton/tokenizer.json"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the paper leaves open was chosen on three fine-tunes of tiny-moe-natural."""

    tuned: tuple[str, ...] = setting(
        (), "NAME=PACK: a fine-tune of PACK; its prompts are --data NAME=FILE. Repeatable."
    )
    prompts: int = setting(10, "Take this many prompts of each fine-tune.")
    steps: int = setting(20, "Steps of learning; 0: task arithmetic with the coefficient --start.")
    rate: float = setting(0.02, "Learning rate of the coefficients.")
    start: float = setting(0.0, "Coefficient to start from; 0: one divided by the number of fine-tunes.")
    temperature: float = setting(1.0, "Temperature of the divergence of logits.")
    gamma: float = setting(0.3, "Weight of how far coefficients are from their fine-tune's mean.")
    chunks: float = setting(
        0.0, "Expert Merging++: then learn as long again with so many chunks a layer on average, important layers more."
    )
    kappa: float = setting(1.0, "Power of a layer's importance in its share of the chunks.")


def compress(job: Job) -> Compressed:
    """The coefficients learnt, and the pack that they make.

    Memory while it learns: 8 bytes a weight of one model, and one layer of one pack in float32. Raises InvalidInput:
    fine-tunes that are none, or of another base; settings without sense.
    """
    settings: Settings = job.settings
    learning = Learning(settings.steps, settings.rate, settings.temperature, settings.gamma)
    if settings.prompts < 1 or not (settings.chunks >= 0 and settings.kappa >= 0 and isfinite(settings.start)):
        raise InvalidInput(
            "--prompts must be 1 or more, --chunks and --kappa 0 or more, --start a number", reason="SETTING_INVALID"
        )
    tuned = _opened(job)
    job = replace(job, data={name: list(islice(job.data[name], settings.prompts)) for name in tuned})
    layout = laid_out(job.old)
    start = settings.start or 1 / len(tuned)
    mix = Mix(job.old, tuple(tuned.values()), layout, torch.full((len(tuned), layout.total), start))
    if settings.steps:
        lessons = Lessons(job, tuned)
        mix = learnt(job, mix, lessons, learning, stage="")
        if settings.chunks:
            mix = learnt(job, _cut(mix, settings), lessons, learning, stage=" of chunks")
    return replace(mix.compressed(), facts=_facts(job, tuned, mix))


def shares(importance: Tensor, budget: float, kappa: float) -> list[int]:
    """Chunks of every part: ⌊B L I^kappa / Σ I^kappa⌋ of L parts, one at least.

    The paper's B of 0.9 to 1.2 is read as an average a layer: as a total it would cut nothing.
    """
    powers = importance.double().clamp(min=0) ** kappa
    total = float(powers.sum()) or 1.0
    return [max(1, int(budget * len(powers) * float(power) / total)) for power in powers]


def _cut(mix: Mix, settings: Settings) -> Mix:
    """The mix in chunks, each with the coefficient of its layer. What is in no block stays whole."""
    importance = [_importance(mix, number, names) for number, names in enumerate(mix.layout.parts[:-1])]
    layout = laid_out(mix.base, shares(torch.tensor(importance), settings.chunks, settings.kappa))
    return replace(mix, layout=layout, alpha=mix.alpha[:, layout.owners])


def _importance(mix: Mix, number: int, names: Sequence[str]) -> float:
    """I = Σ_k |alpha_k| mean|tau_k| n of a part: its n weights' Σ|tau_k|."""
    total = 0.0
    for name in names:
        base = weights_of(mix.base, name)
        for factor, pack in zip(mix.alpha[:, number].abs().tolist(), mix.tuned, strict=True):
            total += factor * sum(
                float((value - base[field]).abs().sum(dtype=torch.float64))
                for field, value in weights_of(pack, name).items()
            )
    return total


def _opened(job: Job) -> dict[str, PackWeights]:
    """The fine-tunes by name. Raises InvalidInput (TUNED_INVALID, TUNED_UNRELATED)."""
    found = dict[str, PackWeights]()
    for text in job.settings.tuned:
        name, equals, pack = text.partition("=")
        if not (name and equals and pack) or name in found:
            raise InvalidInput(
                f"--tuned {text[:200]} names no pack, or a name twice; give --tuned NAME=PACK", reason="TUNED_INVALID"
            )
        found[name] = PackWeights(open_pack(pack))
        _refuse_unrelated(job.old, name, found[name])
    if not found:
        raise InvalidInput(
            "expert-merging merges fine-tunes of the pack; give --tuned NAME=PACK", reason="TUNED_INVALID"
        )
    if found.keys() != job.data.keys():
        odd = sorted(found.keys() ^ job.data.keys())[0]
        raise InvalidInput(
            f"{odd!r} is named by only one of --tuned and --data; every fine-tune needs prompts of its own",
            reason="TUNED_INVALID",
        )
    return found


def _refuse_unrelated(base: PackWeights, name: str, tuned: PackWeights) -> None:
    """Raise InvalidInput (TUNED_UNRELATED) for what is no fine-tune of the base, with the first reason found."""
    if reason := _otherwise(base, tuned) or _foreign(base, tuned):
        raise InvalidInput(f"{name} is no fine-tune of the pack: {reason}", reason="TUNED_UNRELATED")


def _otherwise(base: PackWeights, tuned: PackWeights) -> str:
    ours, theirs = base.manifest, tuned.manifest
    if ours.family != theirs.family:
        return f"it is of family {theirs.family}, the pack of {ours.family}"
    if ours.layer_experts != theirs.layer_experts or ours.top_k != theirs.top_k:
        return "its numbers of experts are others"
    shapes = [{entry: tensor.shape for entry, tensor in pack.tensors.items()} for pack in (base, tuned)]
    if shapes[0] != shapes[1] or base.model.shapes != tuned.model.shapes:
        odd = next((entry for entry in shapes[0] if shapes[0][entry] != shapes[1].get(entry)), "its experts")
        return f"{odd} is of another shape"
    digests = [{file.path: file.digest for file in pack.manifest.skeleton}.get(TOKENIZER) for pack in (base, tuned)]
    return "its tokenizer is another" if digests[0] != digests[1] else ""


def _foreign(base: PackWeights, tuned: PackWeights) -> str:
    """Whether the matrices beside the experts point elsewhere."""
    if base.manifest.model_id == tuned.manifest.model_id:
        return "it is the pack itself"
    product, ours, theirs = 0.0, 0.0, 0.0
    for name in (name for names in parts_of(base) for name in names if not name.startswith("experts.")):
        first, second = base.tensor(name).double(), tuned.tensor(name).double()
        if first.dim() > 1:
            product += float((first * second).sum())
            ours, theirs = ours + float(first.square().sum()), theirs + float(second.square().sum())
    cosine = product / max((ours * theirs) ** 0.5, 1e-30)
    if not cosine >= RELATED:
        return f"its weights point elsewhere (cosine {cosine:.2f}), so it was trained from another start"
    return ""


def _facts(job: Job, tuned: Mapping[str, PackWeights], mix: Mix) -> dict[str, object]:
    """Of the provenance: packs by what they are, not by where they lay."""
    settings = asdict(job.settings) | {"tuned": {name: pack.manifest.model_id for name, pack in tuned.items()}}
    coefficients = {
        name: {"chunks": list(mix.layout.counts), "alpha": [round(value, 6) for value in row]}
        for name, row in zip(tuned, mix.alpha.tolist(), strict=True)
    }
    return {"settings": settings, "coefficients": coefficients}


METHOD = Method(
    name="expert-merging",
    title="fine-tunes of one base added up with coefficients learnt layer by layer",
    source="Expert Merging, arXiv 2509.25712",
    changes=("weights", "router", "skeleton"),
    needs=("prompts", "fine-tuned packs", "training"),
    cost="steps x prompts forward and back through one model, and as often a read of all packs; the model twice in "
    "memory, in float32",
    loads="hf, vLLM",
    settings=Settings,
    compress=compress,
)
