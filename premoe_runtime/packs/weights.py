"""Which weights the packs of a store have, and so which pattern sets are stale: made with weights that none has."""

from __future__ import annotations

from collections.abc import MutableMapping
from contextlib import suppress
from dataclasses import dataclass

from premoe_runtime.formats.errors import Conflict, CorruptData, InvalidInput, NotFound
from premoe_runtime.packs.place import pack_folder, packs_in, tenants_in
from premoe_runtime.packs.reader import PackReader
from premoe_runtime.storage import Store


@dataclass(frozen=True, slots=True)
class PackedWeights:
    """Weights of the packs ``where``.

    ``ids`` is None where that cannot be told: no pack there, a damaged one, or one that may not be read.
    """

    where: str
    ids: frozenset[str] | None

    def lack(self, weights_id: str) -> bool:
        """Whether what was made with these weights is stale."""
        return self.ids is not None and weights_id not in self.ids

    def check(self, set_id: str, weights_id: str) -> None:
        """Raise Conflict (SET_STALE) for a pattern set of weights that no pack has."""
        if self.lack(weights_id):
            have = ", ".join(sorted(found[:16] for found in self.ids or ()))
            raise Conflict(
                f"set {set_id[:16]} is stale: it was made with weights {weights_id[:16]}, and the packs in "
                f"{self.where} have {have}; profile that model and build a set of it, or pack the older one again",
                reason="SET_STALE",
            )


def packed_weights(store: Store, known: MutableMapping[str, str] | None = None) -> PackedWeights:
    """Of a store's packs, shared ones and those of tenants: patterns are everybody's.

    ``known`` keeps what was read by model id: packs do not change. Raises Unavailable.
    """
    known = {} if known is None else known
    try:
        models = _all_packs(store)
        for model_id, folder in models.items():
            if model_id not in known:
                known[model_id] = PackReader(store, folder).manifest().weights_id
    except (CorruptData, InvalidInput, NotFound):
        return PackedWeights(store.url, None)
    return PackedWeights(store.url, frozenset(known[model_id] for model_id in models) or None)


def packed_top_k(store: Store, weights_id: str) -> frozenset[int]:
    """Experts a token of each readable pack with these weights; their configs may differ. Raises Unavailable."""
    found = set()
    for folder in _all_packs(store).values():
        with suppress(CorruptData, InvalidInput, NotFound):
            manifest = PackReader(store, folder).manifest()
            if manifest.weights_id == weights_id:
                found.add(manifest.top_k)
    return frozenset(found)


def _all_packs(store: Store) -> dict[str, str]:
    """Model ids and a folder of each."""
    tenants = ["", *tenants_in(store)]
    return {model_id: pack_folder(model_id, tenant) for tenant in tenants for model_id in packs_in(store, tenant)}
