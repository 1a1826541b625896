from __future__ import annotations

import asyncio
import uuid

import numpy as np
import pytest
from premoe_retrieval.adapters.memory import MemoryIndex
from premoe_retrieval.repository import PatternRepository
from premoe_retrieval.service import PatternService
from support.blob_pack import write_blob_pack
from support.stored_patterns import DIMENSION, FAR, TASKS, WEIGHTS, StoredSet, direction, store_set

from premoe_runtime.formats.arrays import F32
from premoe_runtime.formats.choices import OnUnknown
from premoe_runtime.formats.errors import Conflict, CorruptData, InvalidInput, NotFound, Unavailable
from premoe_runtime.formats.live import LivePointer, live_path
from premoe_runtime.formats.pattern import pattern_path
from premoe_runtime.formats.pattern_set import Member, PatternSet, set_paths
from premoe_runtime.formats.recognition import recognise
from premoe_runtime.formats.signature import Signatures
from premoe_runtime.storage import Store, open_store


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A store and a service over the numpy index."""

    def __init__(self, store: Store | None = None, on_unknown: OnUnknown | None = None) -> None:
        self.store = store or open_store(f"memory://{uuid.uuid4()}")
        self.clock = Clock()
        self.index = MemoryIndex()
        repository = PatternRepository(self.store, live_refresh_s=1.0, clock=self.clock)
        self.service = PatternService(repository, self.index, on_unknown=on_unknown)

    async def go_live(self, stored: StoredSet) -> str:
        await self.service.publish_set(stored.set_id)
        return await self.service.set_live(WEIGHTS, stored.set_id)


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize("task", TASKS)
async def test_a_known_task_gets_its_specialist(bench: Bench, task: str) -> None:
    stored = store_set(bench.store)
    await bench.go_live(stored)
    retrieved = await bench.service.retrieve(WEIGHTS, Signatures(stored.near(task)))
    assert retrieved.set_id == stored.set_id
    assert (retrieved.decision.kind, retrieved.decision.task) == ("specialist", task)
    assert retrieved.decision.pattern_id == stored.pattern_id(task)
    assert retrieved.decision.score == pytest.approx(recognise(stored.pattern_set, stored.near(task)).score, abs=1e-5)
    assert retrieved.decision.matches[0].task == task
    assert retrieved.neighbours == 15


@pytest.mark.parametrize(
    ("service", "asked", "expected"),
    [
        (None, None, "generalist"),
        (None, "reject", "reject"),
        ("full", None, "full"),
        ("full", "reject", "reject"),
        ("reject", "generalist", "generalist"),
    ],
)
async def test_an_unknown_task_follows_the_request_then_the_service_then_the_set(
    service: OnUnknown | None, asked: OnUnknown | None, expected: str
) -> None:
    bench = Bench(on_unknown=service)
    stored = store_set(bench.store)
    await bench.go_live(stored)
    decision = (await bench.service.retrieve(WEIGHTS, Signatures(FAR), on_unknown=asked)).decision
    assert decision.kind == expected
    assert decision.pattern_id == (stored.pattern_id("generalist") if expected == "generalist" else "")
    assert not decision.recognised


async def test_without_a_generalist_an_unknown_task_is_rejected(bench: Bench) -> None:
    await bench.go_live(store_set(bench.store, generalist=False))
    assert (await bench.service.retrieve(WEIGHTS, Signatures(FAR))).decision.kind == "reject"


def bad(name: str) -> F32:
    return {
        "too short": direction(0)[:-1],
        "empty": np.zeros(0, np.float32),
        "not finite": np.where(np.arange(DIMENSION) == 3, np.nan, direction(0)).astype(np.float32),
        "infinite": np.where(np.arange(DIMENSION) == 3, np.inf, direction(0)).astype(np.float32),
        "twice as long": 2 * direction(0),
        "zero": np.zeros(DIMENSION, np.float32),
    }[name]


@pytest.mark.parametrize("live", ["0" * 64, "../../etc", "foreign"])
async def test_a_live_pointer_that_leads_nowhere_is_the_servers_fault(bench: Bench, live: str) -> None:
    if live == "foreign":
        live = store_set(bench.store).set_id
    bench.store.put(live_path("other"), b'{"set_id": "%s"}' % live.encode())
    for asked in (bench.service.retrieve("other", Signatures(FAR)), bench.service.list_patterns("", "other")):
        says = "live/other.json: .* is no id" if "/" in live else "the live pointer of weights other leads nowhere"
        with pytest.raises(CorruptData, match=says) as caught:
            await asked
        assert caught.value.reason == "LIVE_SET_BROKEN"
        assert bench.store.url not in str(caught.value)


@pytest.mark.parametrize("name", ["too short", "empty", "not finite", "infinite", "twice as long", "zero"])
async def test_a_signature_that_is_none_is_refused(bench: Bench, name: str) -> None:
    await bench.go_live(store_set(bench.store))
    with pytest.raises(InvalidInput, match="signature") as caught:
        await bench.service.retrieve(WEIGHTS, Signatures(bad(name)))
    assert caught.value.reason == "SIGNATURE_INVALID"


async def test_unknown_weights_and_sets_are_named(bench: Bench) -> None:
    stored = store_set(bench.store)
    with pytest.raises(NotFound, match="no pattern set is live for weights") as live:
        await bench.service.retrieve(WEIGHTS, Signatures(FAR))
    with pytest.raises(NotFound, match="is not published") as unpublished:
        await bench.service.retrieve(WEIGHTS, Signatures(FAR), set_id=stored.set_id)
    with pytest.raises(NotFound, match="no pattern set 0000") as missing:
        await bench.service.retrieve(WEIGHTS, Signatures(FAR), set_id="0000")
    await bench.service.publish_set(stored.set_id)
    with pytest.raises(InvalidInput, match="belongs to weights") as foreign:
        await bench.service.retrieve("other", Signatures(FAR), set_id=stored.set_id)
    with pytest.raises(InvalidInput, match="weights_id is empty"):
        await bench.service.retrieve("", Signatures(FAR), set_id=stored.set_id)
    with pytest.raises(InvalidInput, match="is no id"):
        await bench.service.retrieve("../../etc", Signatures(FAR))
    assert [one.value.reason for one in (live, unpublished, missing, foreign)] == [
        "NO_LIVE_SET",
        "SET_NOT_PUBLISHED",
        "SET_NOT_FOUND",
        "WEIGHTS_MISMATCH",
    ]


async def test_without_a_live_set_every_prompt_may_run_on_the_full_model(bench: Bench) -> None:
    retrieved = await bench.service.retrieve(WEIGHTS, Signatures(FAR), on_unknown="full")
    assert (retrieved.decision.kind, retrieved.decision.pattern_id, retrieved.set_id) == ("full", "", "")
    assert retrieved.decision.reason == "there is no live pattern set"
    assert (await Bench(on_unknown="full").service.retrieve(WEIGHTS, Signatures(FAR))).decision.kind == "full"
    with pytest.raises(NotFound, match="no pattern set 0000"):
        await bench.service.retrieve(WEIGHTS, Signatures(FAR), set_id="0000", on_unknown="full")


async def test_a_published_set_can_be_searched_before_it_is_live(bench: Bench) -> None:
    stored = store_set(bench.store)
    assert await bench.service.publish_set(stored.set_id) == (21, False)
    assert await bench.service.publish_set(stored.set_id) == (21, True)
    await bench.index.delete(stored.set_id)
    assert await bench.service.publish_set(stored.set_id) == (21, False), "an index that lost its points is filled"
    retrieved = await bench.service.retrieve(WEIGHTS, Signatures(stored.near("spelling")), set_id=stored.set_id)
    assert retrieved.decision.task == "spelling"


async def test_going_live_switches_one_pointer(bench: Bench) -> None:
    first, second = store_set(bench.store, seed=1), store_set(bench.store, seed=2)
    assert await bench.go_live(first) == ""
    assert await bench.go_live(second) == first.set_id
    pointer = LivePointer.load(bench.store.get, WEIGHTS)
    assert pointer.set_id == second.set_id
    assert [version.set_id for version in pointer.history] == [second.set_id, first.set_id]
    assert (await bench.service.retrieve(WEIGHTS, Signatures(FAR))).set_id == second.set_id
    assert await bench.service.set_live(WEIGHTS, second.set_id) == second.set_id


async def test_only_a_published_set_of_the_same_weights_goes_live(bench: Bench) -> None:
    stored = store_set(bench.store)
    with pytest.raises(Conflict, match="publish it before it goes live") as caught:
        await bench.service.set_live(WEIGHTS, stored.set_id)
    assert caught.value.reason == "SET_NOT_PUBLISHED"
    await bench.service.publish_set(stored.set_id)
    with pytest.raises(InvalidInput, match="belongs to weights"):
        await bench.service.set_live("cd" * 32, stored.set_id)
    assert not bench.store.exists(live_path(WEIGHTS))


async def test_a_live_set_of_weights_that_no_pack_has_is_stale(bench: Bench) -> None:
    stored = store_set(bench.store)
    assert await bench.service.find_stale() == ()
    await bench.go_live(stored)
    assert await bench.service.find_stale() == (), "without a pack nobody can tell"
    packed = write_blob_pack(bench.store).manifest.weights_id
    assert await bench.service.find_stale() == (WEIGHTS,)
    with pytest.raises(
        NotFound, match=f"is live for weights {packed}; .* that of weights {WEIGHTS[:16]} is stale"
    ) as old:
        await bench.service.retrieve(packed, Signatures(FAR))
    assert old.value.reason == "NO_LIVE_SET"
    assert (await bench.service.retrieve(WEIGHTS, Signatures(FAR))).set_id == stored.set_id, (
        "its own model is served on"
    )
    with pytest.raises(Conflict, match="is stale: it was made with weights abab") as caught:
        await bench.service.set_live(WEIGHTS, stored.set_id)
    assert caught.value.reason == "SET_STALE"
    assert bench.store.url not in str(caught.value)
    fresh = store_set(bench.store, weights_id=packed)
    await bench.service.publish_set(fresh.set_id)
    await bench.service.set_live(packed, fresh.set_id)
    assert (await bench.service.retrieve(packed, Signatures(FAR))).set_id == fresh.set_id


async def test_where_packs_may_not_be_read_nothing_is_stale(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = store_set(bench.store)
    write_blob_pack(bench.store)
    list_names = bench.store.list_names

    def refused(prefix: str = "") -> tuple[str, ...]:
        if prefix == "models":
            raise InvalidInput("access refused; check credentials and rights", reason="ACCESS_REFUSED")
        return list_names(prefix)

    monkeypatch.setattr(bench.store, "list_names", refused)
    await bench.go_live(stored)
    assert await bench.service.find_stale() == ()


async def test_a_live_set_is_not_deleted_and_others_are(bench: Bench) -> None:
    first, second = store_set(bench.store, seed=1), store_set(bench.store, seed=2)
    await bench.go_live(first)
    await bench.service.publish_set(second.set_id)
    with pytest.raises(Conflict, match="is live for weights") as caught:
        await bench.service.delete_set(first.set_id)
    assert caught.value.reason == "SET_IS_LIVE"
    assert await bench.service.delete_set(second.set_id) is True
    assert await bench.service.delete_set(second.set_id) is False
    with pytest.raises(NotFound, match="is not published"):
        await bench.service.retrieve(WEIGHTS, Signatures(FAR), set_id=second.set_id)
    assert (await bench.service.retrieve(WEIGHTS, Signatures(FAR))).set_id == first.set_id


async def test_a_switch_by_another_replica_counts_after_the_refresh_time(bench: Bench) -> None:
    first, second = store_set(bench.store, seed=1), store_set(bench.store, seed=2)
    other = Bench(bench.store)
    await bench.go_live(first)
    assert (await bench.service.retrieve(WEIGHTS, Signatures(FAR))).set_id == first.set_id
    await other.go_live(second)
    assert (await bench.service.retrieve(WEIGHTS, Signatures(FAR))).set_id == first.set_id
    bench.clock.now += 1.0
    assert (await bench.service.retrieve(WEIGHTS, Signatures(FAR))).set_id == second.set_id, "indexed on demand"


async def test_a_set_made_live_by_another_replica_is_not_deleted(bench: Bench) -> None:
    first, second = store_set(bench.store, seed=1), store_set(bench.store, seed=2)
    await bench.go_live(first)
    await bench.service.publish_set(second.set_id)
    await Bench(bench.store).go_live(second)
    with pytest.raises(Conflict, match="is live"):
        await bench.service.delete_set(second.set_id)


async def test_live_sets_are_indexed_again_from_object_storage(bench: Bench) -> None:
    stored = store_set(bench.store)
    await bench.go_live(stored)
    bench.store.put(live_path("cd" * 32), b"not json")
    again = Bench(bench.store)
    assert await again.service.rebuild() == 1
    assert await again.index.count(stored.set_id, DIMENSION) == 21


async def test_an_index_that_lost_its_points_is_filled_again(bench: Bench) -> None:
    stored = store_set(bench.store)
    await bench.go_live(stored)
    await bench.index.delete(stored.set_id)
    assert (await bench.service.retrieve(WEIGHTS, Signatures(stored.near("sorting")))).decision.task == "sorting"
    assert await bench.index.count(stored.set_id, DIMENSION) == 21


async def test_a_set_with_a_missing_pattern_is_not_published(bench: Bench) -> None:
    stored = store_set(bench.store)
    bench.store.delete(pattern_path(stored.pattern_id("counting")))
    with pytest.raises(NotFound, match="build the set again"):
        await bench.service.publish_set(stored.set_id)
    assert await bench.index.count(stored.set_id, DIMENSION) == 0


@pytest.mark.parametrize("broken", [0, 1], ids=["document", "exemplars"])
async def test_a_corrupt_set_is_not_published(bench: Bench, broken: int) -> None:
    stored = store_set(bench.store)
    path = set_paths(stored.set_id)[broken]
    data = bytearray(bench.store.get(path))
    data[-1] ^= 1
    bench.store.put(path, bytes(data))
    with pytest.raises(CorruptData):
        await bench.service.publish_set(stored.set_id)


async def test_patterns_are_listed_and_read(bench: Bench) -> None:
    stored = store_set(bench.store)
    await bench.go_live(stored)
    set_id, listed = await bench.service.list_patterns("", WEIGHTS)
    assert set_id == stored.set_id
    assert [member.task for member in listed.members] == [*TASKS, "generalist"]
    assert (await bench.service.list_patterns(stored.set_id, ""))[0] == stored.set_id
    pattern = await bench.service.pattern(stored.pattern_id("sorting"))
    np.testing.assert_array_equal(pattern.ranking, stored.patterns["sorting"].ranking)
    with pytest.raises(NotFound, match="no pattern 0000"):
        await bench.service.pattern("0000")
    with pytest.raises(InvalidInput, match="give set_id"):
        await bench.service.list_patterns("", "")


async def test_many_first_requests_index_the_live_set_once(bench: Bench) -> None:
    stored = store_set(bench.store)
    await bench.go_live(stored)
    again = Bench(bench.store)
    published = []
    publish = again.index.publish

    async def counted(set_id: str, pattern_set: object) -> None:
        published.append(set_id)
        await asyncio.sleep(0)
        await publish(set_id, stored.pattern_set)

    again.index.publish = counted  # type: ignore[method-assign]
    results = await asyncio.gather(
        *(again.service.retrieve(WEIGHTS, Signatures(stored.near("sorting"))) for _ in range(8))
    )
    assert {result.decision.task for result in results} == {"sorting"}
    assert published == [stored.set_id]


async def test_a_dead_store_is_unavailable_until_it_is_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = store_set(bench.store)
    await bench.go_live(stored)
    bench.clock.now += 10

    def refuse(path: str) -> bytes:
        raise Unavailable("s3 is down", reason="STORE_FAILED")

    with monkeypatch.context() as patched:
        patched.setattr(bench.store, "get", refuse)
        with pytest.raises(Unavailable, match=r"live pointer .* the object store does not answer"):
            await bench.service.retrieve(WEIGHTS, Signatures(FAR))
    assert (await bench.service.retrieve(WEIGHTS, Signatures(FAR))).set_id == stored.set_id


async def test_a_specialist_that_only_has_a_name_is_never_recognised(bench: Bench) -> None:
    stored = store_set(bench.store)
    named = Member(pattern_id=stored.pattern_id("sorting")[::-1], task="named", kind="specialist")
    more = (*stored.pattern_set.document.members, named)
    for members in (more, (named,)):
        document = stored.pattern_set.document.model_copy(update={"members": members, "generalist_id": None})
        made = PatternSet.make(
            document, stored.pattern_set.exemplars if members == more else stored.pattern_set.exemplars[:0]
        )
        for path, data in zip(set_paths(made.set_id), made.to_files(), strict=True):
            bench.store.put(path, data)
        bench.store.put(pattern_path(named.pattern_id), b"")
        await bench.service.publish_set(made.set_id)
        await bench.service.set_live(WEIGHTS, made.set_id)
        for task in TASKS:
            decision = (
                await bench.service.retrieve(
                    WEIGHTS, Signatures(stored.near(task)), set_id=made.set_id, on_unknown="reject"
                )
            ).decision
            assert (decision.kind, decision.task) == (("specialist", task) if members == more else ("reject", ""))
        _, listed = await bench.service.list_patterns(made.set_id, WEIGHTS)
        assert "named" in [member.task for member in listed.members]
