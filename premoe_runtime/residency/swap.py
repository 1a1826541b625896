"""Carrying a plan out in three steps: retire, copy, publish.

``retire`` and ``publish`` write tables and belong between two steps, on the engine's thread. ``copy`` moves the bytes
and may run anywhere, while decoding goes on: until the publish no step can reach the slots it writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet

from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.bank import ExpertBank, Kept, Semantics, Ticket
from premoe_runtime.residency.plan import SwapPlan
from premoe_runtime.residency.source import ExpertSource
from premoe_runtime.residency.transfer import Transfer


def never() -> bool:
    return False


def retire(bank: ExpertBank, plan: SwapPlan, *, in_use: AbstractSet[ExpertId] = frozenset()) -> None:
    """Take the plan's victims out of the tables. Raises Conflict (see ``ExpertBank.retire``)."""
    bank.retire(plan, in_use=in_use)


def publish(
    bank: ExpertBank, plan: SwapPlan, rows: Mapping[int, Kept] | None = None, *, semantics: Semantics = "selection"
) -> int:
    """Enter the copied experts and rows into the tables; returns the generation. Raises Conflict."""
    return bank.publish(plan, rows, semantics=semantics)


def copy(
    bank: ExpertBank,
    plan: SwapPlan,
    source: ExpertSource,
    cancelled: Callable[[], bool] = never,
    *,
    bytes_per_second: float | None = None,
    threads: int = 1,
) -> bool:
    """Bring the plan's blobs through the host tier into their slots; True when all of them are there.

    Blobs that the host tier lacks are read from ``source`` and checked against the manifest's digests. After a
    cancellation (False) or an error the swap is over and its slots stay empty; checked blobs stay in the host tier, so
    a retry moves less. ``threads`` copy what the host tier holds already; more than one only pays, and only is fair,
    where nothing decodes meanwhile. Raises CorruptData (digest), Exhausted (host tier full of pins), Conflict (not
    retired), and what the source raises.
    """
    transfer = Transfer(bank, bank.ticket(plan), source, cancelled, bytes_per_second, threads)
    try:
        with bank.transfers:
            finished = transfer.run()
    except BaseException:
        bank.abandon(plan)
        raise
    if not finished:
        bank.abandon(plan)
    return finished


def bring(
    bank: ExpertBank,
    source: ExpertSource,
    needed: AbstractSet[ExpertId],
    rows: Mapping[int, Kept] | None = None,
    *,
    pinned: AbstractSet[ExpertId] = frozenset(),
    semantics: Semantics = "selection",
) -> int:
    """All three steps at once, where no engine runs: profiling, tests, the first pattern. Returns the generation."""
    plan = bank.plan(needed, pinned)
    retire(bank, plan)
    copy(bank, plan, source)
    return publish(bank, plan, rows, semantics=semantics)


def prefetch(
    bank: ExpertBank,
    experts: Iterable[ExpertId],
    source: ExpertSource,
    cancelled: Callable[[], bool] = never,
    *,
    bytes_per_second: float | None = None,
) -> None:
    """Read blobs into the host tier only, as many as it has room for now. Raises as ``copy`` does."""
    transfer = Transfer(bank, Ticket(SwapPlan((), 0), None), source, cancelled, bytes_per_second)
    with bank.transfers:
        wanted = [expert for expert in dict.fromkeys(experts) if expert not in bank.host]
        transfer.fetch(wanted[: bank.host.available])
