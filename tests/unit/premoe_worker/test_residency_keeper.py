from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from premoe_worker.domain import PatternChoice
from premoe_worker.residency import LIVE_SET_S, Preload, ResidencyKeeper, reachable

from premoe_runtime.formats.choices import OnUnknown
from premoe_runtime.formats.errors import NotFound, PremoeError, Unavailable
from premoe_runtime.formats.ranking import Ranking
from premoe_runtime.formats.signature import Signatures
from premoe_runtime.serving.reports import SwapReport
from premoe_runtime.serving.requests import KeptPattern

EXPERTS = 8


def kept(name: str, *experts: int) -> KeptPattern:
    mask = np.zeros((2, EXPERTS), np.bool_)
    mask[:, list(experts)] = True
    return KeptPattern(name, mask)


A, B, C = kept("p-a", 0, 1, 2), kept("p-b", 3, 4, 5), kept("p-c", 1, 2, 3)


@pytest.mark.parametrize(("slots", "expected"), [(2, []), (3, ["a"]), (4, ["a", "c"]), (6, ["a", "b", "c"])])
def test_reachable_takes_what_fits_together_in_order(slots: int, expected: list[str]) -> None:
    assert list(reachable({"a": A, "b": B, "c": C}, (slots, 6))) == expected


@dataclass
class Worker:
    """Remembers what it was told to preload."""

    slots: tuple[int, ...] = (6, 6)
    weights_id: str = "w"
    busy: bool = False
    fault: PremoeError | None = None
    preloaded: list[str] = field(default_factory=list)

    async def pattern(self, pattern_id: str) -> KeptPattern:
        return {pattern.id: pattern for pattern in (A, B, C)}[pattern_id]

    async def preload(self, pattern: KeptPattern) -> SwapReport | None:
        if self.fault is not None:
            raise self.fault
        if self.busy:
            return None
        known = pattern.id in self.preloaded
        self.preloaded.append(pattern.id)
        return SwapReport(generation=1, blobs=0 if known else 6)


@dataclass
class Retrieval:
    live: dict[str, str] = field(default_factory=lambda: {"add": "p-a", "rev": "p-b"})
    fault: PremoeError | None = None
    asked: int = 0

    async def live_tasks(self, weights_id: str) -> Mapping[str, str]:
        self.asked += 1
        if self.fault is not None:
            raise self.fault
        return dict(self.live)

    async def retrieve(self, weights_id: str, signatures: Signatures, on_unknown: OnUnknown) -> PatternChoice:
        raise NotImplementedError

    async def ranking(self, pattern_id: str) -> Ranking:
        raise NotImplementedError

    async def layer_slots(self, weights_id: str, kept: int, spare: int) -> tuple[int, ...]:
        raise NotImplementedError

    async def generalist(self, weights_id: str) -> str:
        raise NotImplementedError

    async def first_pattern(self, weights_id: str) -> str:
        raise NotImplementedError


@dataclass
class Bench:
    folder: Path
    worker: Worker = field(default_factory=Worker)
    retrieval: Retrieval = field(default_factory=Retrieval)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.keeper = ResidencyKeeper(self.worker, self.retrieval, self.folder, clock=lambda: self.now)

    def write(self, text: str) -> None:
        """As the kubelet does: a new folder, and one rename of the link ``..data``."""
        data = self.folder / f"..{os.urandom(4).hex()}"
        data.mkdir(parents=True)
        (data / "residency.json").write_text(text)
        link = self.folder / "residency.json"
        if not link.is_symlink():
            link.symlink_to("..data/residency.json")
        (self.folder / "..data_tmp").symlink_to(data.name)
        (self.folder / "..data_tmp").replace(self.folder / "..data")

    def listing(self, *tasks: str) -> None:
        self.write(json.dumps({"preload": tasks, "from a newer operator": 1}))

    async def step(self) -> list[str]:
        """What one look preloads."""
        self.worker.preloaded.clear()
        await self.keeper.step()
        return self.worker.preloaded


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "residency")


async def test_the_listed_tasks_are_kept_resident_and_a_change_of_the_list_is_followed(bench: Bench) -> None:
    bench.listing("rev", "add")
    assert await bench.step() == ["p-b", "p-a"]
    assert await bench.step() == ["p-b", "p-a"]
    bench.listing("add")
    assert await bench.step() == ["p-a"]
    bench.listing()
    assert await bench.step() == []


async def test_a_new_live_set_brings_its_own_patterns(bench: Bench) -> None:
    bench.listing("add")
    assert await bench.step() == ["p-a"]
    bench.retrieval.live["add"] = "p-c"
    assert await bench.step() == ["p-a"]
    bench.now += LIVE_SET_S
    assert await bench.step() == ["p-c"]
    assert bench.retrieval.asked == 2


async def test_while_somebody_needs_the_room_nothing_is_preloaded(bench: Bench) -> None:
    bench.listing("add", "rev")
    bench.worker.busy = True
    assert await bench.step() == []
    bench.worker.busy = False
    assert await bench.step() == ["p-a", "p-b"]


async def test_the_state_says_what_is_done_and_why_not_all(bench: Bench) -> None:
    assert bench.keeper.state() == Preload()
    bench.listing("add", "rev")
    bench.retrieval.fault = Unavailable("no retrieval")
    await bench.step()
    assert bench.keeper.state() == Preload(("add", "rev"), (), "preloading waits: no retrieval")
    bench.retrieval.fault, bench.worker.busy = None, True
    await bench.step()
    assert bench.keeper.state() == Preload(("add", "rev"))  # at work
    bench.worker.busy = False
    await bench.step()
    assert bench.keeper.state() == Preload(("add", "rev"), ("add", "rev"))
    bench.worker.busy = True  # requests displace them: they come back, and stay listed
    await bench.step()
    assert bench.keeper.state() == Preload(("add", "rev"), ("add", "rev"))


async def test_the_state_follows_slots_and_live_set(bench: Bench) -> None:
    bench.worker.slots = (4, 4)
    bench.listing("add", "rev")
    await bench.step()
    problem = "4 slots a layer hold 1 of 2 tasks to preload"
    assert bench.keeper.state() == Preload(("add", "rev"), ("add",), problem)
    bench.retrieval.live["add"] = "p-c"
    bench.worker.busy = True
    bench.now += LIVE_SET_S
    await bench.step()
    assert bench.keeper.state() == Preload(("add", "rev"), (), problem)


async def test_a_task_that_a_new_list_leaves_no_room_for_is_done_no_longer(bench: Bench) -> None:
    bench.worker.slots = (4, 4)
    bench.listing("add")
    await bench.step()
    assert bench.keeper.state() == Preload(("add",), ("add",))
    bench.listing("rev", "add")
    await bench.step()
    problem = "4 slots a layer hold 1 of 2 tasks to preload"
    assert bench.keeper.state() == Preload(("rev", "add"), ("rev",), problem)


@pytest.mark.parametrize("text", ["{", "[]", '{"preload": "add"}', '{"preload": [1]}', ""])
async def test_a_bad_file_is_one_line_and_the_old_list_stays(
    bench: Bench, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    bench.listing("add")
    await bench.step()
    caplog.clear()
    bench.write(text)
    for _ in range(3):
        assert await bench.step() == ["p-a"]
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "residency.json: " in record.getMessage()
    assert "still preloading add" in record.getMessage()


async def test_a_missing_file_is_told_once_and_is_an_empty_list(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        assert await bench.step() == []
    assert len(caplog.records) == 1
    assert "still preloading nothing" in caplog.text


async def test_unknown_tasks_are_told_once_and_the_others_come_in(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.listing("mul", "add")
    for _ in range(3):
        assert await bench.step() == ["p-a"]
    assert caplog.text.count("has no task mul to preload") == 1


async def test_tasks_beyond_the_slots_are_told(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.worker.slots = (4, 4)
    bench.listing("add", "rev")
    for _ in range(2):
        assert await bench.step() == ["p-a"]
    assert caplog.text.count("4 slots a layer hold 1 of 2 tasks to preload") == 1


@pytest.mark.parametrize("fault", [Unavailable("retrieval does not answer"), NotFound("no live set")])
async def test_retrieval_may_come_late(bench: Bench, caplog: pytest.LogCaptureFixture, fault: PremoeError) -> None:
    bench.listing("add")
    bench.retrieval.fault = fault
    for _ in range(3):
        assert await bench.step() == []
    assert caplog.text.count(str(fault)) == 1
    bench.retrieval.fault = None
    assert await bench.step() == ["p-a"]


async def test_a_worker_that_stops_says_nothing(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.listing("add")
    bench.worker.fault = Unavailable("stopping", reason="DRAINING")
    await bench.step()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
