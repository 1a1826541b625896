"""A soak from the answers before the load to the checks behind it."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import httpx
from premoe.worker.v1 import worker_pb2, worker_pb2_grpc
from premoe_local.mesh import Mesh
from support.soak.calls import CONTEXT, TEXT, Call, draw
from support.soak.client import LATE, LEFT, Answer, Client, Outcome
from support.soak.faults import Faults, Victim, schedule
from support.soak.footprint import MIB, Footprint, footprints
from support.soak.ground import METRICS, Sets
from support.soak.verdict import complaint, explained

from premoe_runtime.formats.errors import PremoeError

IDLE_S = 60.0
"""Until a worker has nothing left to do once nobody asks any more."""
_PAUSE_S = 2.0
"""For connections to close, and pools to settle."""


@dataclass(frozen=True, slots=True)
class Plan:
    """``fault_every_s``: of each victim. ``switch_every_s``: between two pattern sets, and two checks of integrity."""

    clients: int = 12
    seed: int = 0
    fault_every_s: float = 90.0
    switch_every_s: float = 45.0


@dataclass(slots=True)
class Found:
    """What came of it so far. ``complaints``: a line each; none is wanted."""

    outcomes: list[Outcome] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    integrity_checks: int = 0
    counts: Counter[str] = field(default_factory=Counter)


class Soak:
    """One mesh under load. Use from one event loop."""

    def __init__(
        self, mesh: Mesh, client: Client, admin: grpc.aio.Channel, faults: Faults, sets: Sets, calls: Sequence[Call]
    ) -> None:
        self._mesh, self._client, self._sets, self._calls = mesh, client, sets, calls
        self.faults = faults
        self._admin = worker_pb2_grpc.WorkerAdminServiceStub(admin)
        self._known: dict[tuple[str, str], Answer] = {}
        self.found = Found()

    async def learn(self) -> None:
        """Ask every known call once under the sets of each metric, nothing else running."""
        for _ in METRICS:
            await asyncio.to_thread(self._sets.switch, self._mesh.retrieval_address)
            for call in self._calls:
                outcome = await self._client.send(call)
                if outcome.answer is None:
                    self._complain(f"before the load: {call.name}: {outcome.code}: {outcome.said}")
                else:
                    self._known[call.name, outcome.answer.pattern] = outcome.answer

    async def fill_caches(self) -> None:
        """Prompts of every length: vLLM's kernels for CPUs keep what they make for each number of tokens of a step."""
        for length in range(1, CONTEXT - 1):
            wanted = {"prompt": [length % 100 + 5] * length, "max_tokens": 1, "pattern": "generalist"}
            outcome = await self._client.send(Call("", TEXT, wanted))
            if outcome.code != 200:
                self._complain(f"before the load: a prompt of {length} tokens: {outcome.code}: {outcome.said}")

    async def load(self, plan: Plan, seconds: float, part: int) -> None:
        """Clients, faults, sets and checks, for so long; then every call that is open ends. Parts draw other calls."""
        end, name = time.monotonic() + seconds, f"{plan.seed} {part}"
        source = random.Random(name)
        async with asyncio.TaskGroup() as group:
            for number in range(plan.clients):
                group.create_task(self._ask(random.Random(f"{name} {number}"), end))
            group.create_task(self._injure(schedule(source, seconds, plan.fault_every_s), source))
            group.create_task(self._change(plan.switch_every_s, end))

    async def quiet(self) -> dict[str, Footprint]:
        """Wait until nothing runs, check every resident byte and every process; their sizes then."""
        await asyncio.to_thread(self.faults.mend)
        deadline = time.monotonic() + IDLE_S
        while left := await self._left():
            if time.monotonic() > deadline:
                self._complain(f"{left} sequences run or wait {IDLE_S:.0f} s after the last call ended")
                break
            await asyncio.sleep(0.2)
        await self._check("when nothing runs")
        await asyncio.sleep(_PAUSE_S)
        try:
            self._mesh.check()
        except PremoeError as error:
            self._complain(str(error))
        return self._footprints()

    def sizes(self) -> dict[str, tuple[float, int, int]]:
        """MiB of private memory, open files and threads of every process that is there now."""
        return {name: (round(one.private / MIB, 1), one.files, one.threads) for name, one in self._footprints().items()}

    def _footprints(self) -> dict[str, Footprint]:
        return footprints(self._mesh, self.faults.redis.process.pid)

    async def _ask(self, source: random.Random, end: float) -> None:
        while time.monotonic() < end:
            outcome = await self._client.send(draw(source, self._calls))
            self.found.outcomes.append(outcome)
            self.found.counts[_kind(outcome, self.faults)] += 1
            if (wrong := complaint(outcome, self.faults.known, self._known)) is not None:
                self._complain(wrong, at=outcome.ended)
            await asyncio.sleep(source.uniform(0.0, 0.3))

    async def _injure(self, faults: Sequence[tuple[float, Victim, float]], source: random.Random) -> None:
        began = time.monotonic()
        for due, victim, down_s in faults:
            await asyncio.sleep(began + due - time.monotonic())
            await self.faults.inject(victim, down_s, source.choice((signal.SIGKILL, signal.SIGTERM)))

    async def _change(self, every_s: float, end: float) -> None:
        while (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(every_s, left))
            try:
                await asyncio.to_thread(self._sets.switch, self._mesh.retrieval_address)
            except PremoeError as error:
                self._complain(f"a pattern set did not go live: {error}")
            await self._check("under load")

    async def _check(self, when: str) -> None:
        try:
            await self._admin.CheckIntegrity(worker_pb2.CheckIntegrityRequest(), timeout=IDLE_S)
            self.found.integrity_checks += 1
        except grpc.aio.AioRpcError as error:
            self._complain(f"the worker's check of its bytes {when}: {error.code().name}: {error.details()}")

    async def _left(self) -> int:
        worker = self._client.worker
        found = await worker.GetResidency(worker_pb2.GetResidencyRequest(), timeout=IDLE_S)
        return int(found.running + found.waiting)

    def _complain(self, line: str, at: float | None = None) -> None:
        moment = time.strftime("%H:%M:%S", time.gmtime(time.time() + (at or time.monotonic()) - time.monotonic()))
        self.found.complaints.append(f"{moment} {line}")


@asynccontextmanager
async def opened(mesh: Mesh, faults: Faults, sets: Sets, calls: Sequence[Call]) -> AsyncIterator[Soak]:
    """A soak with its connections."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with (
        httpx.AsyncClient(base_url=mesh.url, timeout=None, limits=limits, trust_env=False) as http,
        grpc.aio.insecure_channel(mesh.worker_addresses[0]) as worker,
        grpc.aio.insecure_channel(mesh.admin_addresses[0]) as admin,
    ):
        yield Soak(mesh, Client(http, worker, mesh.model_name), admin, faults, sets, calls)


def _kind(outcome: Outcome, faults: Faults) -> str:
    """What became of a call, for counting."""
    if outcome.code == LEFT:
        return "left"
    if outcome.code == LATE:
        return "past their deadline"
    if outcome.call.status != 200:
        return "refused"
    if outcome.code == 200:
        return "answered"
    return "failed for the store" if explained(outcome, faults.known) else "failed"
