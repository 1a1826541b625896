"""A whole swap on one thread, where no engine runs: plan, fetch, retire, copy, publish.

A worker does the same steps spread over its threads: ``serving.loop`` decides, the engine carries out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet

from premoe_runtime.formats.choices import Semantics
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.copier import BlobCopy, Copied, Copier, Copy
from premoe_runtime.residency.fetch import Fetcher
from premoe_runtime.residency.host_arena import HostArena
from premoe_runtime.residency.host_tier import HostTier
from premoe_runtime.residency.ledger import Ledger
from premoe_runtime.residency.plan import STAGING_BYTES
from premoe_runtime.residency.slot_store import SlotStore
from premoe_runtime.residency.slot_tables import Kept, SlotTables
from premoe_runtime.residency.source import ExpertSource


def alone(copied: Copied) -> Copied:
    """What one rank has done is all that is done."""
    return copied


def bring(
    store: SlotStore,
    source: ExpertSource,
    needed: AbstractSet[ExpertId],
    rows: Mapping[int, Kept] | None = None,
    *,
    pinned: AbstractSet[ExpertId] = frozenset(),
    semantics: Semantics = "selection",
    staging_bytes: int = STAGING_BYTES,
) -> None:
    """Make ``needed`` resident and write ``rows``: profiling, evaluation, tests.

    Raises what ``bring_by`` raises.
    """
    arena = HostArena(store.shape.blob_bytes, staging_bytes)
    bring_by(Copier(store, arena).run, store, arena, source, needed, rows, pinned=pinned, semantics=semantics)


def bring_by(
    run: Callable[[Copy], Copied],
    tables: SlotTables,
    arena: HostArena,
    source: ExpertSource,
    needed: AbstractSet[ExpertId],
    rows: Mapping[int, Kept] | None = None,
    *,
    pinned: AbstractSet[ExpertId] = frozenset(),
    semantics: Semantics = "selection",
    together: Callable[[Copied], Copied] = alone,
) -> None:
    """The same over any slots: ``run`` copies from the arena into those that ``tables`` are about.

    Where several ranks do this at once, each with slots of its own, ``together`` makes one of what became of their
    copies: none goes on by itself. What was fetched before an error is published. Raises Exhausted (slots), CorruptData
    (digest), Conflict (a row keeps an expert that is not resident), and what the source raises.
    """
    shape = tables.shape
    ledger = Ledger(shape.slots, shape.manifest.layer_experts, tables.slot_table(), ranks=shape.ranks)
    fetcher = Fetcher(source, shape, arena)
    left = list(ledger.plan(needed, pinned))
    while left:
        batch, left = left[: arena.capacity], left[arena.capacity :]
        tier = HostTier(arena)
        places = {load.expert: tier.reserve(load.expert) for load in batch if tables.holds(load.layer, load.slot)}
        digests: dict[ExpertId, str] = {}
        fetched = together(_fetched(fetcher, places, digests))
        if fetched.error is not None:
            raise fetched.error
        tables.retire(ledger.retire(batch))
        moves = [
            BlobCopy(load.expert, places[load.expert], load.slot, digests[load.expert])
            for load in batch
            if load.expert in places
        ]
        copied = together(run(Copy(tuple(moves))))
        tables.publish(ledger.settle(batch, copied.written, copied.torn))
        if copied.error is not None:
            raise copied.error
    tables.publish((), rows, semantics=semantics)


def _fetched(fetcher: Fetcher, places: Mapping[ExpertId, int], digests: dict[ExpertId, str]) -> Copied:
    """Nothing is written yet; what kept blobs from coming here is in the result."""
    try:
        fetcher.fetch(places, digests.__setitem__)
    except Exception as error:
        return Copied(frozenset(), error=error)
    return Copied(frozenset())
