"""The profile pass over calibration text, with every expert seen: forward, and backward where a score needs it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import blake3
import torch

from premoe_runtime.engines.hf.blocks import BlockModel, load_block_model
from premoe_runtime.engines.hf.device import device_kind
from premoe_runtime.engines.hf.model import SlotModel, load_slot_model
from premoe_runtime.formats.allocation import slots_text
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.ids import ExpertId, WeightsId
from premoe_runtime.formats.signature import SignatureSpec
from premoe_runtime.offline.batches import MAX_TOKENS
from premoe_runtime.offline.calibration import Answers, Example, calibration_digest
from premoe_runtime.offline.profile.orders import Advance, by_batches, by_layers
from premoe_runtime.offline.profile.record import Calibration, Profile
from premoe_runtime.offline.profile.run import Run
from premoe_runtime.offline.profile.samples import Sample, encode_examples, own_answers
from premoe_runtime.offline.profile.scores import USUAL, refuse_family
from premoe_runtime.offline.profile.spool import default_spool
from premoe_runtime.offline.profile.unfinished import Keeper, Unfinished
from premoe_runtime.packs.reader import PackReader
from premoe_runtime.residency.source import ExpertSource
from premoe_runtime.residency.swap import bring


def make_full(model: SlotModel, advance: Advance = lambda _: None) -> None:
    """Bring every expert in and let mask row 0 keep them all; ``advance`` is told of every layer.

    Raises InvalidInput when the slots do not suffice.
    """
    store = model.store
    experts = model.manifest.layer_experts
    if store.slots != experts:
        raise InvalidInput(
            f"this needs all {slots_text(experts)} experts of a layer resident, but there are "
            f"{slots_text(store.slots)} slots",
            reason="SLOTS_TOO_FEW",
        )
    for layer, count in enumerate(experts):
        bring(store, model.source, {ExpertId(layer, expert) for expert in range(count)})
        advance(1)
    bring(store, model.source, frozenset(), {0: model.manifest.exists})
    model.steps(0)


def load_full_model(
    source: ExpertSource, *, threads: int | None = None, device: str = "cpu", dtype: str = "auto"
) -> SlotModel:
    """A slot model with room for every expert; ``dtype`` is "auto", "float32" or "bfloat16".

    "auto" is float32 on the CPU, where bfloat16 is slower, and the checkpoint's elsewhere.
    Raises InvalidInput, CorruptData, Exhausted, Unavailable.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    slots = source.manifest().num_experts
    return load_slot_model(source, slots=slots, max_rows=2, device=device, dtype=arithmetic(device, dtype))


def load_blocks(
    reader: PackReader, *, threads: int | None = None, device: str = "cpu", dtype: str = "auto"
) -> BlockModel:
    """A model of which one block at a time is in memory; settings as for ``load_full_model``, and what it raises."""
    if threads is not None:
        torch.set_num_threads(threads)
    return load_block_model(reader, device=device, dtype=arithmetic(device, dtype))


def arithmetic(device: str, dtype: str) -> torch.dtype | None:
    """What ``load_full_model`` makes of its settings; None: the checkpoint's. Raises InvalidInput (device)."""
    kind = device_kind(device)
    if dtype == "auto":
        return torch.float32 if kind == "cpu" else None
    found: torch.dtype = getattr(torch, dtype)
    return found


def measure_profile(
    model: SlotModel,
    examples: Sequence[Example],
    *,
    task: str,
    answers: Answers = "given",
    where: str = "calibration",
    layers: tuple[int, ...] = (0,),
    max_tokens: int = MAX_TOKENS,
    scores: Sequence[str] = USUAL,
    unfinished: Unfinished | None = None,
    spool: Path | None = None,
    advance: Advance = lambda _: None,
    stage: Callable[[str], None] = lambda what: None,
    passed_over: Callable[[str], None] = lambda place: None,
) -> Profile:
    """Run prompts and answers through the full model; collect routing sums, impact and prompt signatures.

    ``model`` needs slots for all experts and gets them filled, or is a ``BlockModel``, which is run layer by layer with
    the layers' inputs in ``spool``. ``answers`` are those given, the model's own, or none: then every token counts as
    answer. ``scores``: what the profile can be ranked by later; no sum is taken that none of them needs, and those of
    gradients take a backward pass, twice the time of the forward one. ``layers`` are the signature layers.
    With ``unfinished`` a run that was stopped goes on behind its last finished batch, or layer; to clear that is the
    caller's. ``advance`` is told how many examples each batch had (layer by layer: parts of them), ``stage`` what is
    run, ``passed_over`` what is not used and why. Raises InvalidInput (see ``encode_examples``, ``refuse_family``),
    CorruptData, Unavailable, and what ``open_spool`` raises.
    """
    refuse_family(scores, model.manifest.family)
    samples = encode_examples(model, examples, answers=answers, where=where, passed_over=passed_over)
    digest = calibration_digest(examples)
    keeper = Keeper(unfinished, _settings(model, task, digest, answers, layers, max_tokens, sorted(scores)))
    if not isinstance(model, BlockModel):
        make_full(model)
    if answers == "own":
        samples = _answered(model, samples, max_tokens, keeper)
    run = Run(model, samples, layers, max_tokens, scores, where=where)
    with keeper.forgetting():
        if isinstance(model, BlockModel):
            folder = (spool or default_spool()) / f"{model.manifest.weights_id[:16]}-{task}"
            by_layers(run, model, folder, keeper, advance, stage)
        else:
            by_batches(run, keeper, advance)
    return _profile(
        run, task, layers, Calibration(digest=digest, samples=len(samples), tokens=run.tokens, answers=answers)
    )


def _answered(model: SlotModel, samples: Sequence[Sample], max_tokens: int, keeper: Keeper) -> list[Sample]:
    """The samples with answers of the model's own, each batch of which is kept."""
    if isinstance(model, BlockModel):
        raise InvalidInput(
            "a model that is profiled layer by layer writes no answers of its own; give them in the data, or take "
            "--answers none",
            reason="OWN_ANSWERS_NEED_MEMORY",
        )
    for written in own_answers(model, samples, max_tokens, keeper.answers):
        keeper.answers |= written
        keeper.save(0, None)
    return [replace(sample, answer=keeper.answers[index]) for index, sample in enumerate(samples)]


def _profile(run: Run, task: str, layers: tuple[int, ...], calibration: Calibration) -> Profile:
    manifest, signatures = run.model.manifest, run.signatures()
    return Profile(
        weights_id=WeightsId(manifest.weights_id),
        task=task,
        top_k=manifest.top_k,
        layer_experts=manifest.layer_experts,
        calibration=(calibration,),
        signature=SignatureSpec(layers=layers, dimension=signatures.shape[1]),
        state=run.sums().state,
        signatures=signatures,
        tool=f"premoe {version('premoe')}",
    )


def _settings(model: SlotModel, *what: object) -> str:
    """Digest of all that a measurement's numbers, and the steps it is made of, depend on."""
    arithmetic = [str(model.model.dtype), model.device.type, torch.__version__, version("premoe")]
    named = [model.manifest.weights_id, isinstance(model, BlockModel), *arithmetic, *what]
    return blake3.blake3(json.dumps(named).encode()).hexdigest()
