"""Runs one service's `main` in this process, and ends it when the parent is gone.

``python -m premoe_local.child premoe_worker.cli --port 0 …``. Standard input is a pipe from the parent that nobody
writes to: it closes when the parent ends in any way, kill -9 included, on every system and whichever thread of the
parent started us (a parent-death signal is bound to that thread).
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time

GRACE_S = 15.0


def main() -> None:
    module = sys.argv.pop(1)
    sys.argv[0] = module.partition(".")[0].replace("_", "-")
    threading.Thread(target=_watch_parent, name="parent-watch", daemon=True).start()
    importlib.import_module(module).main()


def _watch_parent() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(1)


if __name__ == "__main__":
    main()
