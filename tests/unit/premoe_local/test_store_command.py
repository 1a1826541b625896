"""`premoe store` against a store whose answers the test gives, and what it asks for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from premoe.experts.v1 import experts_pb2 as pb
from premoe_local.cli import command as premoe
from premoe_local.store_client import Counts, State
from premoe_local.store_warming import IDLE_POLLS, STALLED_S, of_patterns, wait
from support.blob_pack import BlobPack, write_blob_pack
from support.scripted_store import ScriptedStore, scripted
from support.stored_patterns import StoredSet, store_set

from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.errors import Unavailable
from premoe_runtime.formats.ids import ExpertId, WeightsId
from premoe_runtime.formats.live import go_live
from premoe_runtime.formats.pattern import Pattern
from premoe_runtime.storage import open_store

NOBODY = "127.0.0.1:1"


class Store(ScriptedStore):
    """Serves one manifest, answers prefetches, tells events and ends. ``states``: one a watch, the last for good."""

    def __init__(
        self,
        pack: BlobPack,
        counts: Counts = Counts(0, 0, 0),
        events: Sequence[pb.WatchStoreResponse] = (),
        states: Sequence[pb.WatchStoreResponse] = (),
    ) -> None:
        async def manifest() -> bytes:
            return pack.manifest.to_json()

        super().__init__(manifest)
        self.counts, self.events, self.states = counts, events, list(states)
        self.wanted: list[list[ExpertId]] = []
        self.model_ids: set[str] = set()

    async def Prefetch(self, request: pb.PrefetchRequest, context: Any) -> pb.PrefetchResponse:  # type: ignore[override]
        self.wanted.append([ExpertId(one.layer, one.expert) for one in request.experts])
        self.model_ids.add(request.model_id)
        return pb.PrefetchResponse(**self.counts._asdict())

    async def WatchStore(self, request: pb.WatchStoreRequest, context: Any) -> AsyncIterator[pb.WatchStoreResponse]:
        self.model_ids.add(request.model_id)
        for event in self.events:
            yield event
        if self.states:
            yield self.states.pop(0) if len(self.states) > 1 else self.states[0]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path / 'store'}"


@pytest.fixture
def pack(url: str) -> BlobPack:
    return write_blob_pack(open_store(url), experts=8, blob_bytes=1 << 12, file_bytes=64)


@pytest.fixture
def live(url: str, pack: BlobPack) -> StoredSet:
    store = open_store(url)
    stored = store_set(store, weights_id=pack.manifest.weights_id)
    go_live(store.get, store.put, pack.manifest.weights_id, stored.set_id, 0.0)
    return stored


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(premoe, ["store", *map(str, arguments)])


async def run(store: Store, name: str, *arguments: object) -> Result:
    async with scripted(store) as server:
        return await asyncio.to_thread(invoke, name, server.address, *arguments)


def at(present: int, under_way: int = 0, arrived: int = 0) -> pb.WatchStoreResponse:
    return pb.WatchStoreResponse(
        progress=pb.StoreProgress(
            present=present, under_way=under_way, arrived_bytes=arrived, wanted_bytes=under_way << 12
        )
    )


EVENTS = [
    at(2, 3, 100),
    at(4, 1, 200),
    pb.WatchStoreResponse(),  # of a later store
    pb.WatchStoreResponse(blobs_invalid=pb.BlobsInvalid(experts=[pb.ExpertId(layer=1, expert=3)], tier=pb.TIER_REDIS)),
    at(5),
    pb.WatchStoreResponse(pack_gone=pb.PackGone(message="pack 12 is gone from the object store")),
]


async def test_a_watch_tells_lines_until_the_store_ends(pack: BlobPack) -> None:
    result = await run(Store(pack, events=EVENTS), "watch")
    assert result.stdout.splitlines() == [
        "2 of 16 experts in the cache (8.0 KiB); 3 on their way",
        "wrong copies in Redis: layer 1 expert 3",
        "5 of 16 experts in the cache (20.0 KiB)",
        "pack gone: pack 12 is gone from the object store",
    ]
    assert result.exit_code == 6
    assert result.stderr.startswith("error: expert store 127.0.0.1:")
    assert result.stderr.endswith(" has ended; ask again when it is back\n")


async def test_a_watch_tells_programs_one_line_an_event(pack: BlobPack) -> None:
    store = Store(pack, events=EVENTS)
    told = [json.loads(line) for line in (await run(store, "watch", "--json", "--model-id", "ab")).stdout.splitlines()]
    assert [one["event"] for one in told] == ["progress", "progress", "blobs_invalid", "progress", "pack_gone"]
    assert told[0] == {
        "event": "progress",
        "experts": 16,
        "present": 2,
        "under_way": 3,
        "arrived_bytes": 100,
        "wanted_bytes": 3 << 12,
    }
    assert told[2] == {"event": "blobs_invalid", "experts": [{"layer": 1, "expert": 3}], "tier": "redis"}
    assert store.model_ids == {"ab"}


@pytest.mark.parametrize("flags", [["--once"], ["--once", "--json"]])
async def test_the_state_of_now_is_one_line(pack: BlobPack, flags: list[str]) -> None:
    result = await run(Store(pack, events=EVENTS), "watch", *flags)
    assert (result.exit_code, result.stdout.count("\n"), result.stderr) == (0, 1, "")


async def test_all_experts_are_prefetched_and_counted(pack: BlobPack) -> None:
    store = Store(pack, Counts(4, 10, 2))
    result = await run(store, "prefetch", "--all")
    assert (result.exit_code, store.wanted) == (0, [list(pack.blobs)])
    assert result.stdout.endswith(": 4 present, 10 under way, 2 refused\n")
    assert result.stderr.startswith("note: 2 experts were refused: the cache has no room")


async def test_tasks_of_the_live_set_are_prefetched_best_first(url: str, pack: BlobPack, live: StoredSet) -> None:
    store = Store(pack, Counts(0, 6, 0))
    result = await run(store, "prefetch", url, "--task", "sorting", "--budget", "1/3", "--json")
    assert json.loads(result.stdout) == {
        "model_id": pack.model_id,
        "experts": 6,
        "present": 0,
        "under_way": 6,
        "refused": 0,
    }
    ranking = live.patterns["sorting"].ranking
    assert store.wanted == [[ExpertId(layer, int(ranking[layer, rank])) for rank in range(3) for layer in range(2)]]
    await run(store, "prefetch", url)
    whole = {one for pattern in live.patterns.values() for one in np.ndindex(2, 8) if pattern.kept(Budget(1, 4))[one]}
    assert set(store.wanted[1]) == whole, "half of the experts of every pattern"


async def test_waiting_ends_when_they_are_there(pack: BlobPack) -> None:
    store = Store(pack, Counts(0, 16, 0), states=[at(0), at(0, 8), at(9, 7), at(16)])
    result = await run(store, "prefetch", "--all", "--wait", "--json")
    assert (result.exit_code, len(store.wanted)) == (0, 1), "what was refused is not asked for again"
    told = json.loads(result.stdout)
    assert (told["present"], told["under_way"]) == (16, 0)
    short = await run(Store(pack, Counts(2, 1, 13), states=[at(2), at(3)]), "prefetch", "--all", "--wait")
    assert short.exit_code == 7
    assert short.stderr.startswith("error: 13 experts were refused: ")
    lost = await run(Store(pack, Counts(2, 2, 0), states=[at(2), at(3)]), "prefetch", "--all", "--wait")
    assert (lost.exit_code, lost.stdout.endswith(": 3 present, 1 under way, 0 refused\n")) == (6, True)
    assert lost.stderr == "error: 1 experts did not come; the expert store's log says why\n"


async def test_what_cannot_be_is_one_line(url: str, pack: BlobPack) -> None:
    store = Store(pack)
    refusals: list[tuple[list[object], int, str]] = [
        ([], 2, "give STORE_URL, which has the live patterns, or --all"),
        ([url, "--all"], 2, "give STORE_URL, which has the live patterns, or --all"),
        (["--all", "--task", "sorting"], 2, "--all takes every expert"),
        ([url], 3, "has no live pattern set for weights"),
        (["--all", "--model-id", "\udcff"], 2, "is not UTF-8"),
    ]
    for arguments, code, line in refusals:
        _refused(await run(store, "prefetch", *arguments), code, line)
    patterns = open_store(url)
    stored = store_set(patterns, weights_id=pack.manifest.weights_id)
    go_live(patterns.get, patterns.put, pack.manifest.weights_id, stored.set_id, 0.0)
    _refused(await run(store, "prefetch", url, "--task", "cooking"), 3, "no task or pattern 'cooking'")
    _refused(await run(store, "prefetch", url, "--budget", "1/9"), 2, "but the model has 8")
    _refused(await run(store, "prefetch", url, "--budget", "few"), 2, "not of the form a/b")
    assert store.wanted == []
    for command in (["watch", NOBODY], ["prefetch", NOBODY, "--all"]):
        _refused(invoke(*command), 6, f"expert store {NOBODY} does not answer")


def _refused(result: Result, code: int, line: str) -> None:
    assert (result.exit_code, line in result.stderr, result.stderr.count("\n")) == (code, True, 1), result.output


def test_what_never_comes_is_not_waited_for() -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += STALLED_S / 4

    states = iter([State(5, 0), State(5, 2), State(6, 1)])
    told: list[Counts] = []
    with pytest.raises(Unavailable, match="1 experts are missing, and none has come"):
        wait(lambda: Counts(0, 2, 0), lambda: next(states, State(6, 1)), told.append, clock=lambda: now, sleep=sleep)
    assert told[2:] == [Counts(1, 1, 0)] * 5, "news begin the time again"


def test_a_moment_between_two_blobs_is_not_the_end() -> None:
    states = iter([State(0, 0), *[State(0, 0)] * (IDLE_POLLS - 1), State(0, 1), State(1, 0)])
    end = wait(lambda: Counts(0, 1, 0), lambda: next(states), lambda now: None, sleep=lambda seconds: None)
    assert end == Counts(1, 0, 0)


@given(
    seeds=st.lists(st.integers(0, 1 << 30), min_size=1, max_size=4), kept=st.integers(1, 6), layers=st.integers(1, 4)
)
def test_wanted_is_what_any_pattern_keeps_once_and_by_rank(seeds: list[int], kept: int, layers: int) -> None:
    patterns = [_pattern(seed, (layers, 6)) for seed in seeds]
    wanted = of_patterns(patterns, Budget(1, kept))
    assert len(wanted) == len(set(wanted))
    assert set(wanted) == {
        ExpertId(*map(int, one)) for pattern in patterns for one in np.argwhere(pattern.kept(Budget(1, kept)))
    }
    best = [
        min(int(np.flatnonzero(pattern.ranking[layer] == expert)[0]) for pattern in patterns)
        for layer, expert in wanted
    ]
    assert best == sorted(best)


def _pattern(seed: int, shape: tuple[int, int]) -> Pattern:
    source = np.random.default_rng(seed)
    return Pattern.from_scores(
        source.random(shape),
        source.random(shape),
        source.integers(0, 100, shape),
        weights_id=WeightsId("ab" * 32),
        task="sorting",
        kind="specialist",
        metric="peu",
        profiles=["p1"],
    )
