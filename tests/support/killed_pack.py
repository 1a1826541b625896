"""A child process that packs a checkpoint and kills itself with SIGKILL just before its N-th durable step.

``python killed_pack.py disk|store N SRC URL``: "disk" counts fsync, replace and rename calls, "store" counts the
store's puts, copies and deletes. With N past the last step it finishes and prints the number of steps.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import Store, open_store

STEPS: dict[str, tuple[object, tuple[str, ...]]] = {
    "disk": (os, ("fsync", "replace", "rename")),
    "store": (Store, ("put", "copy", "delete")),
}


def main(kind: str, deadly: int, source: str, url: str) -> None:
    steps = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return step

    owner, names = STEPS[kind]
    for name in names:
        setattr(owner, name, counted(getattr(owner, name)))
    write_pack(open_source(source), open_store(url))
    print(steps)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4])
