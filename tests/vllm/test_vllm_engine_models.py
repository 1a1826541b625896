"""Families and number formats behind the engine port, beside the engine ``hf``: prompts as likely under either."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.engines import Collector, prompt
from support.vllm_bench import vllm_child
from support.vllm_models import AMX, MODELS, NUMBERS, checkpoint_of

from premoe_runtime.engines.hf.engine import HfEngine
from premoe_runtime.engines.hf.model import load_slot_model
from premoe_runtime.engines.params import SamplingParams
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.residency.host_arena import HostArena
from premoe_runtime.residency.slot_shape import SlotShape
from premoe_runtime.serving.front import Front
from premoe_runtime.serving.requests import KeptPattern, Request
from premoe_runtime.storage import open_store

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

ROUNDING, ROUNDING_OF_FORMATS = 1e-4, 0.25
"""By how much a log probability differs on average: both engines round, each in its own order, and kernels for number
formats round activations too.
"""
FAMILIES = ("gpt_oss", "minimax_m2")
FORMATS = ("fp8", "mxfp4", "compressed-tensors, INT4")


def patterns(manifest: Manifest) -> list[KeptPattern]:
    """Two that keep three of four experts, as many of every group."""
    found = []
    for name, left_out in (("a", 0), ("b", 1)):
        kept = manifest.exists
        kept[:, left_out::4] = False
        found.append(KeptPattern(name, kept))
    return found


def packed(checkpoint: Path) -> str:
    return write_pack(open_source(str(checkpoint)), open_store((checkpoint.parent / "store").as_uri())).url


def run(front: Front, request: Request) -> Collector:
    collector = Collector(request.request_id)
    front.generate(request, lambda report: None, collector)
    return collector


@contextmanager
def served(pack: str, engine: str, *, slots: int | None = None, blobs: int = 8, context: int = 256) -> Iterator[Front]:
    """``slots``: of vLLM's layers, instead of one for each expert; ``blobs``: of its host tier."""
    source = open_pack(pack)
    manifest = source.manifest()
    if engine == "vllm":
        shape = SlotShape.as_stored(manifest, slots=slots or manifest.num_experts)
        arena = HostArena(shape.blob_bytes, blobs * shape.blob_bytes)
        made = vllm_child(pack, shape, arena, context=context)
    else:
        shape = SlotShape.of(manifest, slots=manifest.num_experts)
        arena = HostArena(shape.blob_bytes, blobs * shape.blob_bytes)
        made = HfEngine(load_slot_model(source, slots=manifest.num_experts), arena, context=context)
    front = Front(made, shape, arena, source, retry_seconds=())
    try:
        yield front
    finally:
        front.close()


def likelihoods(front: Front, manifest: Manifest) -> list[np.ndarray]:
    """Of a prompt's tokens under each pattern, in one batch."""
    asked, sampling = tuple(prompt(60)), SamplingParams(max_tokens=3, prompt_logprobs=0)
    collectors = []
    for kept in patterns(manifest):
        collector = Collector(kept.id)
        request = Request(kept.id, kept, manifest.top_k, asked, sampling)
        front.generate(request, lambda report: None, collector)
        collectors.append(collector)
    for collector in collectors:
        assert collector.wait().last.error is None
        assert len(collector.tokens) == 3
    front.check_integrity()
    told = [[each for event in collector.events for each in event.prompt_logprobs] for collector in collectors]
    assert all([each.token_id for each in found] == list(asked[1:]) for found in told)
    return [np.array([each.logprob for each in found]) for found in told]


def compare(checkpoint: Path, rounding: float) -> None:
    pack = packed(checkpoint)
    manifest = open_pack(pack).manifest()
    with served(pack, "vllm") as front:
        ours = likelihoods(front, manifest)
    with served(pack, "hf") as front:
        theirs = likelihoods(front, manifest)
    apart = max(np.abs(mine - its).mean() for mine, its in zip(ours, theirs, strict=True))
    assert apart < rounding
    # The patterns are farther apart than the engines.
    assert np.abs(ours[0] - ours[1]).mean() > 2 * apart


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_as_under_the_engine_hf(tmp_path: Path, name: str) -> None:
    compare(checkpoint_of(MODELS[name], tmp_path), ROUNDING)


@pytest.mark.parametrize("name", FORMATS)
def test_a_number_format_is_as_under_the_engine_hf(tmp_path: Path, name: str) -> None:
    """Where there are no kernels for it, the engine says so and which one to take."""
    if AMX:
        compare(NUMBERS[name](tmp_path), ROUNDING_OF_FORMATS)
        return
    pack = packed(NUMBERS[name](tmp_path))
    with pytest.raises(InvalidInput, match=r"does not run this model here: .*; use the engine hf") as caught:
        with served(pack, "vllm"):
            pass
    assert caught.value.reason == "ENGINE_UNSUPPORTED"


def test_the_first_request_may_be_of_two_tokens(tmp_path: Path) -> None:
    """As a worker's verification is. Longer ones have AMX turned on by the way, which kernels take for granted."""
    pack = packed(NUMBERS["bf16"](tmp_path))
    manifest, collector = open_pack(pack).manifest(), Collector("first")
    with served(pack, "vllm") as front:
        request = Request("first", patterns(manifest)[0], manifest.top_k, (0, 0))
        front.generate(request, lambda report: None, collector)
        assert collector.wait().last.error is None


def test_a_model_that_keeps_state_is_as_under_the_engine_hf(tmp_path: Path) -> None:
    compare(checkpoint_of(MODELS["qwen3_next"], tmp_path), ROUNDING_OF_FORMATS)


def test_state_outlives_pauses_and_swaps(tmp_path: Path) -> None:
    """Two patterns that do not fit together take turns, a swap each, and answer as they do alone."""
    pack = packed(checkpoint_of(MODELS["qwen3_next"], tmp_path))
    manifest = open_pack(pack).manifest()
    asked = [
        Request(kept.id, kept, manifest.top_k, tuple(prompt(40)), SamplingParams(max_tokens=500, ignore_eos=True))
        for kept in patterns(manifest)
    ]
    experts = manifest.num_experts
    with served(pack, "vllm", slots=experts * 3 // 4, blobs=experts * manifest.num_layers, context=1024) as front:
        alone = [run(front, replace(each, request_id=f"alone {each.request_id}")).wait().tokens for each in asked]
        before = front.stats().pauses
        together = [run(front, each) for each in asked]
        assert [each.wait().tokens for each in together] == alone
        assert front.stats().pauses > before
        assert alone[0] != alone[1]
        front.check_integrity()


def test_a_model_whose_state_vllm_gets_wrong_is_refused_by_name(tmp_path: Path) -> None:
    pack = packed(checkpoint_of(MODELS["lfm2_moe"], tmp_path))
    with pytest.raises(InvalidInput, match="short convolutions") as caught, served(pack, "vllm"):
        pass
    assert caught.value.reason == "ENGINE_UNSUPPORTED"
