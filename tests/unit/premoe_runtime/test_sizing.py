import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sources import MemorySource
from support.tiny import tiny_checkpoint, tiny_config

from premoe_runtime.formats.allocation import Splits
from premoe_runtime.formats.budget import Budget, usual_budgets
from premoe_runtime.formats.errors import CorruptData, InvalidInput
from premoe_runtime.offline.sizing.bill import PROCESS_BYTES, SizeRequest, size
from premoe_runtime.offline.sizing.shape import Shape, shape_of
from premoe_runtime.residency.plan import STAGING_BYTES

SHAPE = Shape(
    top_k=4,
    layer_experts=(64,) * 10,
    blob_bytes=1000,
    slot_blob_bytes=1000,
    stored_skeleton_bytes=50_000,
    skeleton_bytes=50_000,
    kv_token_bytes=10,
    activation_token_bytes=5,
    logits_row_bytes=100,
    max_context=2048,
    numbers="bf16",
    held="bf16",
)


def test_the_bill_is_the_sum_of_its_parts() -> None:
    report = size(SHAPE, SizeRequest(memory=10**6, budgets=(Budget(4, 16),), context=100, rows=3, spare=2))
    workspace = (256 + 3) * 5 + 3 * 100
    assert (report.skeleton, report.kv, report.workspace) == (50_000, 10 * 100 * 3, workspace)
    fit = report.fits[0]
    assert (fit.slots, fit.experts) == (18, 18 * 10_000)
    assert fit.total == 50_000 + 180_000 + 3_000 + workspace
    assert fit.fits
    assert fit.reason == ""
    assert report.all_experts == 64 * 10_000
    assert fit.weights == 50_000 + 16 * 10_000
    assert report.largest == fit


def test_slots_and_host_hold_numbers_unpacked_and_packs_as_stored() -> None:
    packed = replace(SHAPE, blob_bytes=500 * 10**6, slot_blob_bytes=10**9, stored_skeleton_bytes=30_000)
    report = size(packed, SizeRequest(memory=None, budgets=(Budget(4, 16),), context=100, rows=3))
    fit = report.fits[0]
    assert (fit.weights, fit.experts) == (30_000 + 160 * 500 * 10**6, 180 * 10**9)
    assert fit.host == 180 * 10**9 + 10 * 100 * 3 + PROCESS_BYTES
    assert report.all_experts == 640 * 500 * 10**6
    assert report.skeleton == 50_000


def test_without_a_memory_size_everything_fits() -> None:
    report = size(SHAPE, SizeRequest(memory=None))
    assert report.memory is None
    assert report.max_slots == SHAPE.num_experts
    assert all(fit.fits and fit.max_context == SHAPE.max_context for fit in report.fits)


@given(st.integers(4, 64), st.integers(0, 70), st.integers(0, 2**32 - 1))
def test_a_shared_budget_costs_what_a_uniform_one_costs(kept: int, spare: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    splits = Splits.of([draw.random((10, 64)) ** 8 for _ in range(2)], 4)
    request = SizeRequest(memory=10**6, budgets=(Budget(4, kept),), spare=spare)
    even, shared = size(SHAPE, request).fits[0], size(SHAPE, replace(request, splits=splits)).fits[0]
    assert shared == replace(even, layer_slots=shared.layer_slots)
    assert sum(shared.layer_slots) == sum(even.layer_slots) == 10 * even.slots
    assert max(shared.layer_slots) <= 64


def test_main_memory_is_counted_beside_the_device() -> None:
    fit = size(SHAPE, SizeRequest(memory=10**6, budgets=(Budget(4, 16),), context=100, rows=3)).fits[0]
    # A host tier has a smallest size.
    assert fit.host == STAGING_BYTES + 10 * 100 * 3 + PROCESS_BYTES


def test_slots_never_exceed_the_experts() -> None:
    assert size(SHAPE, SizeRequest(memory=10**9, budgets=(Budget(4, 64),))).fits[0].slots == 64


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (SizeRequest(memory=40_000), "skeleton alone"),
        (SizeRequest(memory=250_000, budgets=(Budget(4, 16),), context=2048), "fits with a context of"),
        (SizeRequest(memory=150_000, budgets=(Budget(4, 16),), context=100), "needs 18 slots a layer, 8 fit"),
        (SizeRequest(memory=55_000, budgets=(Budget(4, 16),), context=10), "no slot fits"),
    ],
)
def test_what_does_not_fit_says_why(request_: SizeRequest, why: str) -> None:
    report = size(SHAPE, request_)
    assert not report.fits[0].fits
    assert why in report.fits[0].reason
    assert report.largest is None


@given(
    st.sampled_from([(64,) * 10, (64, *range(8, 64, 7), 30)]),
    st.integers(1, 2 * 10**6),
    st.integers(4, 64),
    st.integers(1, 2048),
    st.integers(1, 32),
    st.integers(0, 8),
)
def test_longest_context_and_most_slots_are_exact(
    layer_experts: tuple[int, ...], memory: int, kept: int, context: int, rows: int, spare: int
) -> None:
    shape = replace(SHAPE, layer_experts=layer_experts)
    budget = Budget(4, kept)
    request = SizeRequest(memory=memory, budgets=(budget,), context=context, rows=rows, spare=spare)
    report = size(shape, request)
    fit = report.fits[0]
    assert sum(fit.layer_slots) == min(fit.slots * len(layer_experts), sum(layer_experts))
    assert fit.experts == sum(fit.layer_slots) * shape.blob_bytes
    assert fit.fits == (fit.total <= memory) == (fit.slots <= report.max_slots) == (fit.max_context >= context)
    assert bool(fit.reason) != fit.fits
    if fit.max_context >= 1:
        assert size(shape, replace(request, context=fit.max_context)).fits[0].fits
    if fit.max_context < 2048:
        assert not size(shape, replace(request, context=fit.max_context + 1)).fits[0].fits


def test_the_largest_fitting_budget_is_named() -> None:
    report = size(SHAPE, SizeRequest(memory=450_000, context=10, rows=1))
    assert [fit.budget for fit in report.fits] == list(usual_budgets(SHAPE.top_k, SHAPE.num_experts))
    assert report.largest is not None
    assert report.largest.budget == Budget(4, 32)


@pytest.mark.parametrize(
    ("request_", "what"),
    [
        (SizeRequest(memory=0), "memory is 0"),
        (SizeRequest(memory=1, rows=0), "rows is 0"),
        (SizeRequest(memory=1, spare=-1), "spare is -1"),
        (SizeRequest(memory=1, context=4096), "context 4096 is outside 1 to 2048"),
        (SizeRequest(memory=1, context=-3), "context -3"),
        (SizeRequest(memory=1, context=0), "context 0"),
        (SizeRequest(memory=1, budgets=(Budget(5, 8),)), "top-k is 4"),
        (SizeRequest(memory=1, budgets=(Budget(4, 65),)), "the model has 64"),
    ],
)
def test_what_no_model_can_run_is_refused(request_: SizeRequest, what: str) -> None:
    with pytest.raises(InvalidInput, match=what):
        size(SHAPE, request_)


def test_the_shape_of_a_checkpoint(tmp_path: Path) -> None:
    source = MemorySource(tiny_checkpoint(tmp_path))
    manifest = source.manifest()
    shape = shape_of(manifest, source.read_file("skeleton/config.json"))
    # 2 layers, 2 key-value heads of 16, float32, keys and values.
    assert shape.kv_token_bytes == 2 * 2 * 2 * 16 * 4
    assert (shape.top_k, shape.num_experts, shape.max_context) == (4, 16, 1024)
    assert shape.skeleton_bytes < manifest.skeleton_bytes
    assert shape.slot_bytes == 2 * manifest.layout.blob_bytes
    # DeepSeek keeps 16 + 8 latent numbers a token in 3 layers; one layer at a time makes 4 heads of them.
    latent = shape_of(manifest, json.dumps(tiny_config("deepseek_v3").to_dict()).encode())
    assert latent.kv_token_bytes == 3 * (16 + 8) * 4
    assert latent.context_token_bytes == latent.kv_token_bytes + 4 * (12 + 8 + 20) * 4
    for text in (b"{", b"[]"):
        with pytest.raises(CorruptData, match=r"config\.json"):
            shape_of(manifest, text)
    with pytest.raises(InvalidInput, match="vocab_size"):
        shape_of(manifest, json.dumps({"hidden_size": 4}).encode())
