"""What the contract suite cannot see from outside: the key that a server gets."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from premoe_retrieval.adapters.qdrant import QdrantIndex
from support.stored_patterns import DIMENSION

from premoe_runtime.formats.errors import PremoeError


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
