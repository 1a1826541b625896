"""Where vLLM's workers find a pack: at its URL, or, in the process that runs the engine, as a source that is open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from premoe_runtime.packs.reader import open_pack
from premoe_runtime.residency.source import ExpertSource

_SCHEME = "lent:"
_lent: dict[str, ExpertSource] = {}


@contextmanager
def lent(source: ExpertSource) -> Iterator[str]:
    """A URL for ``SlotPlan.pack``, the same for the same pack, that is good within this process and this context."""
    url = _SCHEME + source.manifest().model_id
    _lent[url] = source
    try:
        yield url
    finally:
        del _lent[url]


def source_of(pack: str) -> ExpertSource:
    """Raises what ``open_pack`` raises."""
    return _lent[pack] if pack in _lent else open_pack(pack)
