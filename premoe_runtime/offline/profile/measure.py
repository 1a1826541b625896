"""The profile pass over calibration text, with every expert resident: forward, and backward where a score needs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor

from premoe_runtime.engines.hf.device import device_kind
from premoe_runtime.engines.hf.model import SlotModel, load_slot_model
from premoe_runtime.families.registry import FAMILIES
from premoe_runtime.formats.allocation import slots_text
from premoe_runtime.formats.arrays import F32
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.ids import ExpertId, WeightsId
from premoe_runtime.formats.signature import SignatureSpec, signature
from premoe_runtime.offline.batches import MAX_TOKENS, Batch, pad, plan_batches
from premoe_runtime.offline.calibration import Answers, Example, calibration_digest
from premoe_runtime.offline.profile.accumulator import ProfileAccumulator
from premoe_runtime.offline.profile.gradient import traced, weigh
from premoe_runtime.offline.profile.record import Calibration, Profile
from premoe_runtime.offline.profile.samples import encode_examples, with_own_answers
from premoe_runtime.offline.profile.scores import USUAL, refuse_family, sums_of
from premoe_runtime.offline.profile.watch import watched
from premoe_runtime.residency.source import ExpertSource
from premoe_runtime.residency.swap import bring

Advance = Callable[[int], None]


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
    kind = device_kind(device)
    if dtype == "auto":
        arithmetic = torch.float32 if kind == "cpu" else None
    else:
        arithmetic = getattr(torch, dtype)
    return load_slot_model(source, slots=source.manifest().num_experts, max_rows=2, device=device, dtype=arithmetic)


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
    advance: Advance = lambda _: None,
    passed_over: Callable[[str], None] = lambda place: None,
) -> Profile:
    """Run prompts and answers through the full model; collect routing sums, impact and prompt signatures.

    ``model`` needs slots for all experts and gets them filled. ``answers`` are those given, the model's own, or none:
    then every token counts as answer. ``scores``: what the profile can be ranked by later; no sum is taken that none of
    them needs, and those of gradients take a backward pass, twice the time of the forward one. ``layers`` are the
    signature layers; ``advance`` is told how many examples each batch had, ``passed_over`` what is not used and why.
    Raises InvalidInput (see ``encode_examples``, ``refuse_family``), CorruptData, Unavailable.
    """
    refuse_family(scores, FAMILIES[model.manifest.family])
    samples = encode_examples(model, examples, answers=answers, where=where, passed_over=passed_over)
    make_full(model)
    if answers == "own":
        samples = with_own_answers(model, samples, max_tokens)
    manifest = model.manifest
    accumulator = ProfileAccumulator(
        manifest.num_layers,
        manifest.num_experts,
        manifest.router,
        sums=sums_of(scores),
        vocabulary=model.model.get_input_embeddings().num_embeddings,
        device=str(model.device),
    )
    backward = accumulator.needs("gradient", "loss")
    signatures = np.zeros((len(samples), len(layers) * manifest.num_experts), np.float32)
    tokens = [sample.token_ids for sample in samples]
    for indices in plan_batches([len(ids) for ids in tokens], max_tokens):
        batch = pad(tokens, indices, device=model.device)
        places = [f"{where}:{samples[index].line}" for index in indices]
        with traced(model) if backward else nullcontext() as trace:
            probabilities = _forward(model, batch, accumulator, layers, places)
        if trace is not None:
            weigh(model, batch, [samples[index] for index in indices], trace, accumulator, places)
        for row, index in enumerate(indices):
            span = samples[index].prompt.span
            parts = [part[row, span.start : span.stop] for part in probabilities]
            signatures[index] = signature(parts, manifest.num_experts)
        advance(len(indices))
    return Profile(
        weights_id=WeightsId(manifest.weights_id),
        task=task,
        top_k=manifest.top_k,
        layer_experts=manifest.layer_experts,
        calibration=(
            Calibration(
                digest=calibration_digest(examples),
                samples=len(samples),
                tokens=sum(len(ids) for ids in tokens),
                answers=answers,
            ),
        ),
        signature=SignatureSpec(layers=layers, dimension=signatures.shape[1]),
        state=accumulator.state(),
        signatures=signatures,
        tool=f"premoe {version('premoe')}",
    )


@torch.no_grad()
def _forward(
    model: SlotModel, batch: Batch, accumulator: ProfileAccumulator, layers: tuple[int, ...], places: Sequence[str]
) -> list[F32]:
    """One forward; returns the router's softmax f32[B, T, n] at the signature layers, in their order."""
    found: dict[int, F32] = {}

    def keep(layer: int, logits: Tensor, ids: Tensor, weights: Tensor) -> None:
        if layer in layers:
            p = torch.softmax(logits, dim=-1).view(*batch.token_ids.shape, -1)
            found[layer] = p.cpu().numpy()

    with watched(model, batch, accumulator, places, also=keep):
        # The head is not needed: only the last position goes through it.
        model.model(input_ids=batch.token_ids, use_cache=False, logits_to_keep=1)
    return [found[layer] for layer in layers]
