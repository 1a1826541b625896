"""A process that writes an embedded index and is killed in the middle."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import uuid
from pathlib import Path

from premoe_retrieval.adapters.edge import EdgeIndex

from premoe_runtime.storage import open_store
from support.processes import environ
from support.stored_patterns import store_set

TESTS = Path(__file__).parents[1]


def kill_while_writing(folder: Path, exemplars: int, *, batches: int) -> None:
    """Publish three times ``exemplars`` into ``folder``; SIGKILL the writer in its ``batches``-th batch."""
    start = f"from support.killed_index import write; write({str(folder)!r}, {exemplars})"
    process = subprocess.Popen(
        [sys.executable, "-c", start], stdout=subprocess.PIPE, env=environ({"PYTHONPATH": str(TESTS)})
    )
    assert process.stdout is not None
    with process:
        for _ in range(batches):
            assert process.stdout.readline() == b"batch\n"
        process.kill()


def write(folder: str, exemplars: int) -> None:
    """Publish, with a line before every batch."""
    stored = store_set(open_store(f"memory://{uuid.uuid4()}"), exemplars=exemplars)
    index = EdgeIndex(Path(folder))
    check_room = index._folder.check_room

    def said() -> None:
        print("batch", flush=True)
        check_room()

    index._folder.check_room = said  # type: ignore[method-assign]
    asyncio.run(index.publish(stored.set_id, stored.pattern_set))
