"""A child process that runs `premoe gc` and gets a signal just before its N-th deletion.

``python killed_gc.py SIGNAL N ARGUMENT…``
"""

from __future__ import annotations

import os
import signal
import sys

from premoe_local.entry import main

from premoe_runtime.storage import Store


def wound(number: int, deadly: int) -> None:
    """Have this process get the signal ``number`` before deletion ``deadly``."""
    delete, steps = Store.delete, 0

    def counted(self: Store, path: str) -> None:
        nonlocal steps
        steps += 1
        if steps == deadly:
            os.kill(os.getpid(), number)
        delete(self, path)

    Store.delete = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    wound(int(sys.argv[1]), int(sys.argv[2]))
    sys.argv = ["premoe", "gc", *sys.argv[3:]]
    main()
