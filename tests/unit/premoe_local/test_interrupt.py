"""Ctrl-C in the seconds before a command runs: silence, and 130."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SLOW_MODULE = """
try:
    print("importing", flush=True)
    import time
    time.sleep(60)
except BaseException as error:
    raise ImportError("half imported") from error
"""


@pytest.mark.parametrize("module", ["click", "rich", "premoe_runtime.storage"])
def test_an_interrupt_during_imports_is_silent(tmp_path: Path, module: str) -> None:
    """The module stands for one that is slow, and that turns an interrupt into an error of its own."""
    slow = tmp_path / "slow_module.py"
    slow.write_text(SLOW_MODULE)
    script = (
        "import importlib.abc, importlib.util, sys\n"
        "class Finder(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        return importlib.util.spec_from_file_location(name, {str(slow)!r}) if name == {module!r} else None\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from premoe_local.entry import main\n"
        "main()\n"
    )
    # A runner started in the background ignores SIGINT, and the child would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-c", script, "size", "nowhere", "--memory", "1GiB"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"importing\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (130, b"")
