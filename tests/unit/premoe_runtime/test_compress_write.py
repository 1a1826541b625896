"""A plan becomes a pack: what is kept keeps its bits, what is merged is what was computed, a killed run goes on."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.compression import job, tiny_data, tiny_pack

from premoe_runtime.compress import result, weights
from premoe_runtime.compress.config import width_of
from premoe_runtime.compress.method import Quiet
from premoe_runtime.compress.methods import random, select
from premoe_runtime.compress.plan import NOTHING, Made, Plan, experts_of, router_of, selection
from premoe_runtime.compress.result import planned, write
from premoe_runtime.compress.run import run
from premoe_runtime.compress.share import Share
from premoe_runtime.compress.weights import PackWeights, rows
from premoe_runtime.engines.hf.model import load_slot_model
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.offline.profile.measure import make_full
from premoe_runtime.packs import writer
from premoe_runtime.packs.progress import Silent
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.packs.source import COMPRESSION_FILE
from premoe_runtime.packs.verify import verify_pack
from premoe_runtime.storage import Store, open_store

FACTS = {"method": "test"}


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> PackWeights:
    return tiny_pack(tmp_path_factory.mktemp("write"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "out"))


def mixed(old: PackWeights) -> Plan:
    """Kept, narrowed and padded experts, and a merged one, in every layer."""
    width = 8
    order = np.arange(width)
    merged = Made(np.array([1, 2]), np.array([0.75, 0.25]), np.stack([order, order[::-1]]))
    padded = Made.kept(3, [5, 1, *[NOTHING] * (width - 2)])
    layer = (Made.kept(0, order), merged, padded, Made.kept(4, order[::-1]))
    return Plan((layer,) * old.manifest.num_layers, width)


def test_a_written_pack_holds_what_the_plan_makes_bit_for_bit(old: PackWeights, store: Store) -> None:
    plan = mixed(old)
    written = write(old, planned(plan, old, {}), FACTS, store, Silent())
    reader = open_pack(written.url)
    assert not verify_pack(reader).faults
    new = PackWeights(reader)
    dtype = getattr(torch, str(old.tensor(old.model.routers[0]).dtype).removeprefix("torch."))
    for layer in range(old.manifest.num_layers):
        expected = experts_of(plan.layers[layer], old.experts(layer))
        found = new.experts(layer)
        for name in ("gate", "up", "down"):
            assert torch.equal(getattr(found, name), getattr(expected, name).to(dtype).float())
        router = router_of(plan.layers[layer], old.router(layer))
        assert torch.equal(new.router(layer).weight, router.weight.to(dtype).float())
        assert torch.equal(found.down[0], old.experts(layer).down[0][:, :8])
        assert not found.down[2][:, 2:].any()
    untouched = next(name for name in old.tensors if name not in old.model.routers)
    assert torch.equal(new.tensor(untouched), old.tensor(untouched))
    provenance = json.loads(reader.read_file(f"skeleton/{COMPRESSION_FILE}"))
    assert provenance["model_id"] == old.manifest.model_id
    assert provenance["experts"] == [4] * old.manifest.num_layers
    model = load_slot_model(reader, slots=4, max_rows=2)
    make_full(model)
    assert bool(model.model(input_ids=torch.arange(6)[None]).logits.isfinite().all())


def test_the_same_again_is_there_already_and_another_plan_is_another_pack(old: PackWeights, store: Store) -> None:
    first = run(random.METHOD, job(random.METHOD, old, Path()), store)
    again = run(random.METHOD, job(random.METHOD, old, Path()), store)
    other = run(random.METHOD, job(random.METHOD, old, Path(), seed=1), store)
    assert again.already_packed
    assert first.manifest.model_id == again.manifest.model_id != other.manifest.model_id


def test_a_killed_run_goes_on(old: PackWeights, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class Crash(BaseException):
        pass

    computed = list[int]()
    to_blobs = weights.to_blobs

    def dying(experts: object, layout: object) -> torch.Tensor:
        computed.append(1)
        if len(computed) == old.manifest.num_layers:
            raise Crash
        return to_blobs(experts, layout)  # type: ignore[arg-type]

    monkeypatch.setattr(result, "to_blobs", dying)
    with pytest.raises(Crash):
        run(random.METHOD, job(random.METHOD, old, Path()), store)
    assert not store.list("models")
    monkeypatch.undo()
    assert run(random.METHOD, job(random.METHOD, old, Path()), store).resumed_layers == old.manifest.num_layers - 1


def test_selection_keeps_the_same_experts_as_their_score(old: PackWeights, store: Store, tmp_path: Path) -> None:
    task = job(select.METHOD, old, tmp_path / "work", data=tiny_data(tmp_path), score="counts")
    written = run(select.METHOD, task, store)
    values = select.pooled(task, "counts")
    new = PackWeights(open_pack(written.url))
    for layer, row in enumerate(values):
        kept = sorted(np.argsort(-row, kind="stable")[: new.manifest.num_experts].tolist())
        assert torch.equal(new.experts(layer).gate, rows(old.experts(layer), kept).gate)
        assert torch.equal(new.router(layer).weight, old.router(layer).weight[kept])


def test_what_a_method_cannot_take_is_said_in_one_line(old: PackWeights, store: Store, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="give --data"):
        run(select.METHOD, job(select.METHOD, old, tmp_path), store)
    with pytest.raises(InvalidInput, match="give a larger --budget"):
        run(random.METHOD, job(random.METHOD, old, tmp_path, share=0.01), store)
    for text in ("0", "150%", "half", "nan"):
        with pytest.raises(InvalidInput, match="give one such as 25%"):
            Share.parse(text)


def test_a_width_that_dense_layers_share_is_refused(store: Store, tmp_path: Path) -> None:
    shared = tiny_pack(tmp_path, "jamba")
    width = shared.experts(0).width
    layer = tuple(Made.kept(expert, range(width // 2)) for expert in range(shared.manifest.num_experts))
    plan = Plan((layer,) * shared.manifest.num_layers, width // 2)
    with pytest.raises(InvalidInput, match="only methods that keep the width") as caught:
        write(shared, planned(plan, shared, {}), FACTS, store, Silent())
    assert caught.value.reason == "WIDTH_SHARED"


@pytest.mark.parametrize("method", [select, random])
def test_a_router_with_groups_keeps_equally_many_of_each(method: Any, store: Store, tmp_path: Path) -> None:
    grouped = tiny_pack(tmp_path, "deepseek_v3")
    groups = grouped.model.router.groups
    assert groups > 1
    task = job(method.METHOD, grouped, tmp_path / "work", data=tiny_data(tmp_path))
    new = PackWeights(open_pack(run(method.METHOD, task, store).url))
    kept = [
        [next(at for at, gate in enumerate(old.gate) if torch.equal(gate, one)) for one in new.experts(layer).gate]
        for layer, old in enumerate(map(grouped.experts, range(grouped.manifest.num_layers)))
    ]
    each = grouped.manifest.num_experts // groups
    for layer in kept:
        assert set(Counter(expert // each for expert in layer).values()) == {len(layer) // groups}
    with pytest.raises(InvalidInput, match="give a larger --budget"):
        run(method.METHOD, job(method.METHOD, grouped, tmp_path / "small", 0.1, data=task.data), store)


def test_layers_of_different_counts_are_none_for_groups(store: Store, tmp_path: Path) -> None:
    grouped = tiny_pack(tmp_path, "deepseek_v3")
    task = job(select.METHOD, grouped, tmp_path / "work", data=tiny_data(tmp_path), allocation="shared")
    with pytest.raises(InvalidInput, match="chooses experts within") as caught:
        run(select.METHOD, task, store)
    assert caught.value.reason == "GROUPS_UNSUPPORTED"


def test_a_router_that_fewer_rows_change_is_told_of(store: Store, tmp_path: Path) -> None:
    told = list[str]()

    class Listener(Quiet):
        def note(self, text: str) -> None:
            told.append(text)

    run(random.METHOD, job(random.METHOD, tiny_pack(tmp_path, "olmoe"), tmp_path, report=Listener()), store)
    assert "does not renormalise" in told[0]


def test_a_changed_tensor_is_computed_once_however_many_parts_it_is_written_in(
    old: PackWeights, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = next(name for name, one in old.tensors.items() if name not in old.model.routers and one.num_bytes > 4096)
    computed = list[int]()

    def doubled() -> torch.Tensor:
        computed.append(1)
        return 2 * old.tensor(name).float()

    plan = selection([range(count) for count in old.manifest.layer_experts], width_of(old.model))
    new = replace(planned(plan, old, {}), tensors={name: doubled}, key="doubled")
    monkeypatch.setattr(writer, "CHUNK_BYTES", 1024)
    found = PackWeights(open_pack(write(old, new, FACTS, store, Silent()).url))
    assert torch.equal(found.tensor(name).float(), 2 * old.tensor(name).float())
    assert len(computed) == 1
