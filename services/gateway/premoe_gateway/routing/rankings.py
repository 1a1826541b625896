"""The rankings of patterns' experts, read once each: they tell what a worker would have to move."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence

from premoe_gateway.ports import Retrieval
from premoe_runtime.formats.errors import PremoeError

REMEMBERED = 256
TIMEOUT_S = 2.0

log = logging.getLogger(__name__)


class Rankings:
    """A cache in front of the retrieval service. Patterns never change under their id."""

    def __init__(self, retrieval: Retrieval | None) -> None:
        self._retrieval = retrieval
        self._known: OrderedDict[str, Sequence[Sequence[int]]] = OrderedDict()

    async def of(self, pattern_id: str) -> Sequence[Sequence[int]] | None:
        """Every layer's experts, best first; None where that is not to be had: nothing depends on it but speed."""
        if not pattern_id or self._retrieval is None:
            return None
        if pattern_id not in self._known:
            try:
                self._known[pattern_id] = (await self._retrieval.ranking(pattern_id, TIMEOUT_S)).experts.tolist()
            except PremoeError as error:
                log.debug("workers are chosen without the ranking of %s: %s", pattern_id, error)
                return None
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return self._known[pattern_id]
