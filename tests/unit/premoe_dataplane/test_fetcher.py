"""Any sequence of faults ends in right bytes or a clear error: never a wrong byte, never without an end."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import blake3
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from premoe_dataplane.breaker import Breakers
from premoe_dataplane.delivery import Delivery
from premoe_dataplane.fetcher import WRONG, Fetcher
from premoe_dataplane.plan import BlobPlan, Scheme, Source, SwapPlan
from premoe_dataplane.stopped import Stopped
from premoe_dataplane.transports.base import Landed, Part
from premoe_dataplane.transports.http import PLAN_EXPIRED

from premoe_runtime.formats.errors import CorruptData, Exhausted, PremoeError, Unavailable
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.pieces import PIECE_BYTES, piece
from premoe_runtime.packs.checks import piece_checks

JOIN_S = 20.0
LONG = PIECE_BYTES + 100
BLOBS = {ExpertId(0, number): random.Random(number).randbytes(LONG) for number in range(4)}
ORDER: tuple[Scheme, ...] = ("file", "http", "redis", "grpc")


@dataclass
class Fake:
    """A transport over ``BLOBS`` that does to a piece what ``does`` says: right, wrong, missing or an error."""

    scheme: Scheme
    does: Callable[[ExpertId, int], str | Exception] = lambda expert, index: "right"
    calls: list[list[tuple[ExpertId, int]]] = field(default_factory=list)

    def read(self, parts: Sequence[Part], landed: Landed, stopped: Callable[[], bool]) -> None:
        self.calls.append([(part.blob.expert, index) for part in parts for index in part.pieces])
        for part in parts:
            for index in part.pieces:
                outcome = self.does(part.blob.expert, index)
                if isinstance(outcome, Exception):
                    raise outcome
                if outcome == "missing":
                    continue
                where = piece(index, part.blob.num_bytes)
                part.into[where.offset : where.end] = BLOBS[part.blob.expert][where.offset : where.end]
                if outcome == "wrong":
                    part.into[where.offset] ^= 1
                landed(part, index)

    def close(self) -> None: ...


def plan(schemes: Sequence[Scheme] = ORDER, *, checks: bool = True, experts: Sequence[ExpertId] = ()) -> SwapPlan:
    blobs = [
        BlobPlan(
            expert,
            blake3.blake3(data).hexdigest(),
            LONG,
            tuple(Source(scheme, "object", scheme) for scheme in schemes),
            piece_checks(data) if checks else (),
        )
        for expert, data in BLOBS.items()
        if expert in (experts or BLOBS)
    ]
    return SwapPlan(blobs, "lease", 0.0)


@dataclass
class Received:
    """What arrived; ``done`` looks at the bytes at that moment."""

    rooms: dict[ExpertId, bytearray] = field(default_factory=dict)
    finished: list[ExpertId] = field(default_factory=list)

    def into(self, expert: ExpertId) -> memoryview:
        assert expert not in self.rooms
        self.rooms[expert] = bytearray(LONG)
        return memoryview(self.rooms[expert])

    def done(self, expert: ExpertId) -> None:
        assert bytes(self.rooms[expert]) == BLOBS[expert]
        self.finished.append(expert)

    def delivery(self, experts: Sequence[ExpertId] = tuple(BLOBS)) -> Delivery:
        return Delivery(experts, LONG, self.into, self.done)


def never() -> bool:
    return False


def bring(fakes: Sequence[Fake], swap: SwapPlan | None = None, **options: object) -> Received:
    received = Received()
    fetcher = Fetcher(fakes, **options)  # type: ignore[arg-type]
    fetcher.fetch(swap or plan(), received.delivery(), never)
    return received


outcomes = st.sampled_from(["right", "right", "right", "wrong", "missing", "down"])


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    script=st.dictionaries(st.tuples(st.sampled_from(ORDER), st.integers(0, 3), st.integers(0, 1)), outcomes),
    checks=st.booleans(),
    trusted=st.booleans(),
    plans=st.integers(1, 3),
)
@example(
    script={("file", 3, 1): "missing", ("http", 3, 1): "missing", ("redis", 3, 1): "wrong"},
    checks=False,
    trusted=False,
    plans=1,
)
def test_any_faults_end_in_right_bytes_or_a_clear_error(
    script: dict[tuple[Scheme, int, int], str], checks: bool, trusted: bool, plans: int
) -> None:
    def does(scheme: Scheme) -> Callable[[ExpertId, int], str | Exception]:
        def one(expert: ExpertId, index: int) -> str | Exception:
            outcome = script.get((scheme, expert.expert, index), "right")
            return Unavailable("down") if outcome == "down" else outcome

        return one

    fakes = [Fake(scheme, does(scheme)) for scheme in ORDER]
    received = Received()
    fetcher, delivery = Fetcher(fakes, trusted=lambda source: trusted), received.delivery()
    for _ in range(plans):
        try:
            fetcher.fetch(plan(checks=checks), delivery, never)
            assert sorted(received.finished) == sorted(BLOBS)
            break
        except (Unavailable, CorruptData):
            assert delivery.missing
    assert len(received.finished) == len(set(received.finished)) == delivery.delivered
    # Every piece was asked of every source at most once a plan, and once more whenever the whole was wrong: each time
    # it begins anew after the best source that had a part in it.
    for fake in fakes:
        asked = Counter(one for call in fake.calls for one in call)
        assert all(times <= len(ORDER) * plans for times in asked.values())


def test_the_first_source_is_enough() -> None:
    fakes = [Fake(scheme) for scheme in ORDER]
    assert bring(fakes).finished == list(BLOBS)
    assert [len(fake.calls) for fake in fakes] == [1, 0, 0, 0]


def test_only_what_is_wrong_or_missing_is_asked_of_the_next() -> None:
    script = {(ExpertId(0, 1), 0): "wrong", (ExpertId(0, 2), 1): "missing"}
    first = Fake("http", lambda expert, index: script.get((expert, index), "right"))
    second = Fake("grpc")
    fetcher, received = Fetcher([first, second]), Received()
    fetcher.fetch(plan(("http", "grpc")), received.delivery(), never)
    assert sorted(one for call in second.calls for one in call) == sorted(script)
    num_bytes, wrong, again = fetcher.counts.now()
    assert wrong == {"object": 1}
    assert again == {"http": 2}
    assert num_bytes.total() == LONG * len(BLOBS)


def test_a_source_that_answers_with_something_else_is_counted_as_a_wrong_copy() -> None:
    lying = Fake("http", lambda expert, index: CorruptData("another range", reason="WRONG_RANGE"))
    fetcher, received = Fetcher([lying, Fake("grpc")]), Received()
    fetcher.fetch(plan(("http", "grpc")), received.delivery(), never)
    assert received.finished == list(BLOBS)
    assert fetcher.counts.now()[1] == {"object": 1}


def test_wrong_from_everywhere_is_corrupt_and_names_the_source() -> None:
    fakes = [Fake(scheme, lambda expert, index: "wrong") for scheme in ("http", "grpc")]
    with pytest.raises(CorruptData, match=r"came wrong from grpc.*premoe pack verify") as caught:
        bring(fakes, plan(("http", "grpc")))
    assert caught.value.reason == WRONG


@pytest.mark.parametrize("trusted", [True, False])
def test_bytes_that_fit_the_sums_alone_are_enough_only_from_whom_is_trusted(trusted: bool) -> None:
    """The sums of other bytes: what somebody on the way could do."""
    forged = plan(("http", "grpc"))
    other = random.Random(9).randbytes(LONG)
    blobs = [BlobPlan(one.expert, one.digest, LONG, one.sources, piece_checks(other)) for one in forged.blobs]

    class Forger(Fake):
        def read(self, parts: Sequence[Part], landed: Landed, stopped: Callable[[], bool]) -> None:
            for part in parts:
                part.into[:] = other
                for index in part.pieces:
                    landed(part, index)

    taken: list[ExpertId] = []
    delivery = Delivery(list(BLOBS), LONG, lambda expert: memoryview(bytearray(LONG)), taken.append)
    fetcher = Fetcher([Forger("http"), Forger("grpc")], trusted=lambda source: trusted)
    if trusted:
        fetcher.fetch(SwapPlan(blobs, "", 0.0), delivery, never)
        return
    with pytest.raises(CorruptData):
        fetcher.fetch(SwapPlan(blobs, "", 0.0), delivery, never)
    assert taken == []


def test_a_source_that_failed_is_left_alone_by_the_next_fetch_and_asked_again_later() -> None:
    now = [0.0]
    down = Fake("http", lambda expert, index: Unavailable("down"))
    fetcher = Fetcher([down, Fake("grpc")], breakers=Breakers(rest_s=5, clock=lambda: now[0]))
    for _ in range(3):
        fetcher.fetch(plan(("http", "grpc")), Received().delivery(), never)
    assert len(down.calls) == 1
    assert [place.scheme for place in fetcher.breakers.open()] == ["http"]
    now[0] = 6.0
    down.does = lambda expert, index: "right"
    fetcher.fetch(plan(("http", "grpc")), Received().delivery(), never)
    assert len(down.calls) == 2
    assert fetcher.breakers.open() == []


def test_the_last_source_is_asked_even_while_it_rests() -> None:
    flaky = Fake("grpc", lambda expert, index: Unavailable("down"))
    fetcher = Fetcher([flaky])
    with pytest.raises(Unavailable, match="down"):
        fetcher.fetch(plan(("grpc",)), Received().delivery(), never)
    flaky.does = lambda expert, index: "right"
    received = Received()
    fetcher.fetch(plan(("grpc",)), received.delivery(), never)
    assert received.finished == list(BLOBS)


def test_pieces_in_place_stay_so_for_the_next_plan() -> None:
    half = Fake("grpc", lambda expert, index: "right" if index == 0 else Unavailable("cut"))
    fetcher, received = Fetcher([half]), Received()
    delivery = received.delivery([ExpertId(0, 0)])
    one = plan(("grpc",), experts=[ExpertId(0, 0)])
    with pytest.raises(Unavailable):
        fetcher.fetch(one, delivery, never)
    half.does = lambda expert, index: "right"
    fetcher.fetch(one, delivery, never)
    assert half.calls == [[(ExpertId(0, 0), 0), (ExpertId(0, 0), 1)], [(ExpertId(0, 0), 1)]]
    assert received.finished == [ExpertId(0, 0)]


def test_an_old_plan_asks_for_another_and_one_that_is_refused_at_once_for_the_next_source() -> None:
    refusing = Fake("http", lambda expert, index: Unavailable("old", reason=PLAN_EXPIRED))
    fetcher, received = Fetcher([refusing, Fake("grpc")]), Received()
    delivery = received.delivery()
    with pytest.raises(Unavailable) as caught:
        fetcher.fetch(plan(("http", "grpc")), delivery, never)
    assert caught.value.reason == PLAN_EXPIRED
    assert fetcher.breakers.open() == []
    fetcher.fetch(plan(("http", "grpc")), delivery, never)
    assert received.finished == list(BLOBS)


class Slow(Fake):
    """Does not deliver before ``go``."""

    def __init__(self, scheme: Scheme) -> None:
        super().__init__(scheme)
        self.go, self.begun = threading.Event(), threading.Semaphore(0)

    def read(self, parts: Sequence[Part], landed: Landed, stopped: Callable[[], bool]) -> None:
        self.begun.release()
        while not self.go.wait(0.02):
            if stopped():
                raise Stopped
        super().read(parts, landed, stopped)


def test_slow_sources_take_no_readers_from_others() -> None:
    slow = Slow("http")
    fetcher, held = Fetcher([slow, Fake("grpc")]), [Received() for _ in range(3)]
    with ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(fetcher.fetch, plan(("http",)), one.delivery(), never) for one in held]
        for _ in waiting:
            assert slow.begun.acquire(timeout=JOIN_S)
        quick = Received()
        fetcher.fetch(plan(("grpc",)), quick.delivery(), never)
        assert quick.finished == list(BLOBS)
        slow.go.set()
        for one in waiting:
            one.result(JOIN_S)
    assert all(sorted(one.finished) == sorted(BLOBS) for one in held)


def test_what_nobody_waits_for_is_read_when_nothing_else_is_and_at_once_when_somebody_does() -> None:
    slow, quick, waited_for = Slow("http"), Fake("grpc"), threading.Event()
    fetcher, first, second = Fetcher([slow, quick]), Received(), Received()
    with ThreadPoolExecutor(2) as threads:
        urgent = threads.submit(fetcher.fetch, plan(("http",)), first.delivery(), never)
        assert slow.begun.acquire(timeout=JOIN_S)
        background = threads.submit(
            lambda: fetcher.fetch(plan(("grpc",)), second.delivery(), never, urgent=waited_for.is_set)
        )
        time.sleep(0.3)
        assert quick.calls == []
        waited_for.set()
        background.result(JOIN_S)
        slow.go.set()
        urgent.result(JOIN_S)


def test_the_background_keeps_to_its_rate_until_somebody_waits() -> None:
    """At this rate one piece takes an hour."""
    waited_for = threading.Event()
    fetcher, received = Fetcher([Fake("grpc")], background_rate=PIECE_BYTES / 3600), Received()
    with ThreadPoolExecutor(1) as threads:
        background = threads.submit(
            lambda: fetcher.fetch(plan(("grpc",)), received.delivery(), never, urgent=waited_for.is_set)
        )
        time.sleep(0.3)
        assert received.finished == []
        waited_for.set()
        background.result(JOIN_S)
    assert received.finished == list(BLOBS)


def test_a_fetch_ends_when_nobody_wants_it_and_leaves_nothing() -> None:
    slow, unwanted = Slow("http"), threading.Event()
    fetcher, received = Fetcher([slow]), Received()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(fetcher.fetch, plan(("http",)), received.delivery(), unwanted.is_set)
        assert slow.begun.acquire(timeout=JOIN_S)
        unwanted.set()
        assert isinstance(waiting.exception(JOIN_S), Stopped)
    assert received.finished == []
    until = time.monotonic() + JOIN_S
    while any(thread.name == "premoe-fetch-read" for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("error", [Exhausted("the host tier is full"), OSError("no memory"), KeyError("x")])
@pytest.mark.parametrize("where", ["into", "done"])
def test_what_the_receiver_raises_is_raised_as_it_is(error: Exception, where: str) -> None:
    def fail(expert: ExpertId) -> Any:
        raise error

    received = Received()
    into: Any = fail if where == "into" else received.into
    done: Any = fail if where == "done" else received.done
    fetcher = Fetcher([Fake("http"), Fake("grpc")])
    with pytest.raises(type(error)) as caught:
        fetcher.fetch(plan(("http", "grpc")), Delivery(list(BLOBS), LONG, into, done), never)
    assert caught.value is error
    assert fetcher.breakers.open() == []


def test_no_source_at_all_is_one_line() -> None:
    with pytest.raises(PremoeError, match="layer 0 expert 0 cannot be read") as caught:
        bring([Fake("grpc")], plan(()))
    assert caught.value.reason == "NO_SOURCE"
