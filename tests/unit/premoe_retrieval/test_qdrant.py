"""What the contract suite cannot see from outside: a server's grouping may be incomplete."""

from __future__ import annotations

import uuid
from collections import Counter
from typing import Any

import numpy as np
import pytest
from premoe_retrieval.adapters.qdrant import QdrantIndex
from qdrant_client import models
from support.stored_patterns import DIMENSION, store_set

from premoe_runtime.formats.signature import unit
from premoe_runtime.storage import open_store


async def test_groups_that_a_server_left_out_are_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = store_set(open_store(f"memory://{uuid.uuid4()}"))
    index = QdrantIndex()
    await index.publish(stored.set_id, stored.pattern_set)
    vector = unit(np.random.default_rng(3).normal(size=DIMENSION).astype(np.float32))
    wanted = {member.pattern_id: 5 for member in stored.pattern_set.specialists}
    complete = await index.query(stored.set_id, vector, wanted)
    whole = index._client.query_points_groups

    def partial(*args: Any, **kwargs: Any) -> models.GroupsResult:
        groups = whole(*args, **kwargs).groups
        return models.GroupsResult(groups=[groups[0], models.PointGroup(id=groups[1].id, hits=groups[1].hits[:2])])

    monkeypatch.setattr(index._client, "query_points_groups", partial)
    mended = await index.query(stored.set_id, vector, wanted)
    assert Counter(one.pattern_id for one in mended) == dict.fromkeys(wanted, 5)
    assert sorted(one.similarity for one in mended) == pytest.approx(sorted(one.similarity for one in complete))
    await index.close()
