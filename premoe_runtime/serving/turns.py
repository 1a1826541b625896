"""Which patterns run together, and when they take turns: pure decisions over values.

Patterns whose kept experts fit the slots together run in one batch. Otherwise they take turns of at least a quantum of
steps, the one that waits longest first. A turn begins when the head of the queue is swapped in; whoever has to make
room goes to the end. So with P patterns nobody waits for more than (P - 1) turns, each a swap and a quantum long, but
who steps back: patterns of a larger ``priority`` have their turn when those of smaller ones leave room for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import blake3
import numpy as np
import numpy.typing as npt

from premoe_runtime.formats.ids import ExpertId

KeptTable = npt.NDArray[np.bool_]
"""bool[L, E]: the experts that a pattern keeps in each MoE layer."""

DEFAULT_QUANTUM = 16
"""Steps of a turn; shorter ones spend more on swaps than they gain (engine.md section 3d: 2.25x v 2.45x v 3.25x)."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A pattern with unfinished requests. ``since``: ticket drawn when it began to wait or run; lower is longer ago.

    ``idle``: no step runs for it, though it runs: all of its requests wait for something else. ``priority``: the
    smallest of its requests; larger ones step back behind smaller ones.
    """

    key: str
    kept: KeptTable
    since: int
    idle: bool = False
    priority: int = 0

    @property
    def rank(self) -> tuple[int, int]:
        """Who is smaller comes first."""
        return self.priority, self.since


@dataclass(frozen=True, slots=True)
class Move:
    """Pause these patterns, then bring that one in: a turn begins with it. Nothing to start: wait."""

    start: str | None = None
    pause: tuple[str, ...] = ()


WAIT = Move()


def union_fits(tables: Iterable[KeptTable], slots: Sequence[int]) -> bool:
    """Whether every layer's union of kept experts has at most as many members as the layer has ``slots``."""
    listed = list(tables)
    return not listed or bool((np.logical_or.reduce(listed).sum(axis=1) <= np.asarray(slots)).all())


def next_move(
    running: Sequence[Contender],
    waiting: Sequence[Contender],
    slots: Sequence[int],
    *,
    steps: int,
    quantum: int = DEFAULT_QUANTUM,
) -> Move:
    """The next thing to do, one pattern at a time.

    ``steps`` were run since the pattern that the last turn began with was published. Every contender alone fits
    ``slots``. The head of the queue (of the smallest priority the one that waits longest) begins a turn as soon as it
    fits beside the running ones, or once theirs is over; nobody has to make room for a larger priority. Of the running
    ones those stay that fit beside it and the others that can follow at once. Nobody overtakes the head: a younger
    one's swap would make it wait longer. Who is idle has no turn that could be cut short.
    """
    queue = sorted(waiting, key=lambda contender: contender.rank)
    if not queue:
        return WAIT
    head = queue[0]
    if union_fits([*(contender.kept for contender in running), head.kept], slots):
        return Move(head.key)
    over = [c for c in running if (steps >= quantum or c.idle) and c.priority >= head.priority]
    over_keys = {contender.key for contender in over}
    chosen = [contender.kept for contender in running if contender.key not in over_keys]
    chosen.append(head.kept)
    if not union_fits(chosen, slots):
        return WAIT
    paused: list[str] = []
    # Of equal priorities those follow first that have not run yet.
    for contender in sorted([*queue[1:], *over], key=lambda c: (c.priority, c.key in over_keys, c.since)):
        if union_fits([*chosen, contender.kept], slots):
            chosen.append(contender.kept)
        elif contender.key in over_keys:
            paused.append(contender.key)
    return Move(head.key, tuple(paused))


def experts_of(kept: KeptTable) -> frozenset[ExpertId]:
    """The kept experts as ids."""
    return frozenset(ExpertId(layer, expert) for layer, expert in np.argwhere(kept).tolist())


def pattern_key(kept: KeptTable, semantics: str) -> str:
    """Identity of a mask row: hex blake3 of its bits, shape and semantics, whatever the pattern is called."""
    digest = blake3.blake3(f"{semantics} {kept.shape[0]} {kept.shape[1]}\n".encode())
    digest.update(np.packbits(kept).tobytes())
    return digest.hexdigest()


def kv_key(mask_key: str, active: int, weights_id: str, salt: bytes = b"") -> str:
    """Under what a token's keys and values may be reused: hex blake3 of everything that they depend on.

    Mask row and semantics (``pattern_key``), active experts, weights, and a salt per tenant so that nobody can find out
    from timing what others have asked. The token ids come on top, in the engine's own prefix hash.
    """
    body = f"{mask_key} {active} {weights_id} {len(salt)}\n".encode() + salt
    return blake3.blake3(body).hexdigest()
