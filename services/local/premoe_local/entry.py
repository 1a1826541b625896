"""The `premoe` script: hears Ctrl-C from its first instruction on, then imports the commands and runs one."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

_IMPORTS = "<frozen importlib._bootstrap>"


def main() -> None:
    """Run the command line; Ctrl-C is silent and ends with 130, however early or late it comes."""
    signal.signal(signal.SIGINT, _interrupt)
    try:
        try:
            from premoe_local.cli import main as run
        except ModuleNotFoundError as error:
            if (error.name or "").startswith("premoe"):
                raise
            print(f"error: {error.name} is missing; install premoe[local], not premoe alone", file=sys.stderr)
            sys.exit(3)
        run()
    finally:
        # What is left is the interpreter's own end, whose handlers answer an exception with a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """An exception in an import is caught, printed or turned into another by half of the libraries: end at once."""
    if _importing(frame):
        if sys.stderr.isatty():
            os.write(2, b"\r\x1b[K\x1b[?25h")  # a progress bar hides the cursor
        os._exit(130)
    raise KeyboardInterrupt


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORTS:
            return True
        frame = frame.f_back
    return False
