from __future__ import annotations

import uuid

import numpy as np
import pytest
from premoe_expert_store.live_patterns import LivePatterns, shares
from support.blob_pack import write_blob_pack
from support.stored_patterns import store_set

from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.live import go_live
from premoe_runtime.storage import Store, open_store


@pytest.fixture
def store() -> Store:
    return open_store(f"memory://{uuid.uuid4()}")


def test_experts_that_patterns_rank_high_are_wanted(store: Store) -> None:
    stored = store_set(store)
    patterns = list(stored.patterns.values())
    layers, experts = patterns[0].ranking.shape
    manifest = write_blob_pack(store, layers=layers, experts=experts).manifest
    found = shares(manifest, patterns)
    ranks = [np.argsort(pattern.ranking, axis=1) for pattern in patterns]
    for layer in range(layers):
        for expert in range(experts):
            of_all = [max(0.0, 1 - rank[layer, expert] / (experts / 2)) for rank in ranks]
            wanted = sum(of_all) / len(of_all)
            assert found.get(manifest.digest(ExpertId(layer, expert)), 0.0) == pytest.approx(wanted)
    assert shares(manifest, []) == {}
    other = write_blob_pack(store, layers=layers, experts=experts + 1, seed=1).manifest
    assert shares(other, patterns) == {}


def test_the_live_set_is_followed(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    shape = next(iter(store_set(store).patterns.values())).ranking.shape
    manifest = write_blob_pack(store, layers=shape[0], experts=shape[1]).manifest
    live = LivePatterns(store)
    assert live.refresh(manifest) is None
    first = store_set(store, weights_id=manifest.weights_id)
    go_live(store.get, store.put, manifest.weights_id, first.set_id, 0.0)
    found = live.refresh(manifest)
    assert found == shares(manifest, list(first.patterns.values()))
    assert live.refresh(manifest) is None
    second = store_set(store, weights_id=manifest.weights_id, seed=1)
    go_live(store.get, store.put, manifest.weights_id, second.set_id, 1.0)
    store.put(f"patterns/{second.pattern_id('sorting')}.safetensors", b"broken")
    for _ in range(3):
        assert live.refresh(manifest) is None
    assert caplog.text.count("live patterns are not known") == 1
    store_set(store, weights_id=manifest.weights_id, seed=1)
    assert live.refresh(manifest) == shares(manifest, list(second.patterns.values()))
