"""Which experts live patterns want: what the node cache rather keeps. Read from object storage, without torch."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np

from premoe_runtime.formats import arrays
from premoe_runtime.formats.documents import parse_document
from premoe_runtime.formats.errors import CorruptData, NotFound, PremoeError
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.live import LivePointer
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.formats.pattern import Pattern
from premoe_runtime.formats.pattern_set import SetDocument, set_paths
from premoe_runtime.storage import Store

log = logging.getLogger(__name__)


class LivePatterns:
    """The live set of every pack that was asked about. Blocking; not safe from several threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._sets: dict[str, str | None] = {}
        self._shares: dict[str, Mapping[str, float]] = {}
        self._failing = False

    def refresh(self, manifest: Manifest) -> Mapping[str, float] | None:
        """Shares of all packs asked about, by digest, where something has changed; None where nothing has.

        What cannot be read leaves them as they are, and is said once.
        """
        try:
            changed = self._refresh(manifest)
        except PremoeError as error:
            if not self._failing:
                log.warning("live patterns are not known, so the cache goes by use alone: %s", error)
            self._failing = True
            return None
        self._failing = False
        if not changed:
            return None
        return {digest: share for shares in self._shares.values() for digest, share in shares.items()}

    def _refresh(self, manifest: Manifest) -> bool:
        model_id = manifest.model_id
        try:
            set_id = LivePointer.load(self._store.get, manifest.weights_id).set_id
        except NotFound:
            set_id = None
        if model_id in self._sets and self._sets[model_id] == set_id:
            return False
        before = self._shares.get(model_id, {})
        self._shares[model_id] = {} if set_id is None else self._read(manifest, set_id)
        self._sets[model_id] = set_id
        return self._shares[model_id] != before

    def _read(self, manifest: Manifest, set_id: str) -> Mapping[str, float]:
        path, _ = set_paths(set_id)
        document = self._store.get(path)
        if arrays.digest(document) != set_id:
            raise CorruptData(f"{path}: content does not match its id", reason="PATTERN_SET_INVALID")
        found = parse_document(SetDocument, document, where=path, reason="PATTERN_SET_INVALID", cure="build it again")
        return shares(manifest, [Pattern.load(self._store.get, member.pattern_id) for member in found.members])


def shares(manifest: Manifest, patterns: list[Pattern]) -> dict[str, float]:
    """How much live patterns want each blob, 0 to 1, by digest; those that none wants are left out.

    A pattern wants a layer's best expert 1, and less the lower it ranks, down to 0 in the middle of the ranking: which
    budget workers keep is not known here. Patterns of another shape are left out.
    """
    shape = (manifest.num_layers, manifest.num_experts)
    total = np.zeros(shape)
    fitting = [pattern for pattern in patterns if pattern.ranking.shape == shape]
    for pattern in fitting:
        ranks = np.empty(shape)
        np.put_along_axis(ranks, pattern.ranking.astype(np.int64), np.arange(shape[1])[None, :].repeat(shape[0], 0), 1)
        wanted = np.asarray(manifest.layer_experts, dtype=float)[:, None] / 2
        total += np.clip(1 - ranks / wanted, 0, 1) / len(fitting)
    total[~manifest.exists] = 0
    return {
        manifest.digest(ExpertId(int(layer), int(expert))): float(total[layer, expert])
        for layer, expert in zip(*total.nonzero(), strict=True)
    }
