"""What the contract suite cannot see from outside: a server's grouping may be incomplete."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from premoe_retrieval.adapters.qdrant import QdrantIndex
from qdrant_client import models
from support.stored_patterns import DIMENSION, store_set

from premoe_runtime.formats.errors import PremoeError
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


async def test_a_server_gets_the_api_key() -> None:
    keys: list[str | None] = []

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys.append(self.headers["api-key"])
            self.send_error(401)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    # Over plain HTTP the client warns of the key in the clear, and rightly so.
    with pytest.warns(UserWarning, match="insecure connection"):
        index = QdrantIndex(f"http://127.0.0.1:{server.server_port}", timeout_s=5, api_key="a-key")
    with pytest.raises(PremoeError):
        await index.query("set", np.zeros(DIMENSION, np.float32), {"p": 5})
    await index.close()
    server.shutdown()
    thread.join()
    server.server_close()
    assert set(keys) == {"a-key"}
