"""`premoe` as a process to which the kernel gives so much memory beyond its imports, and no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = """
import importlib, json, re, resource, sys
from premoe_local.entry import main

for name in sys.argv.pop(1).split(","):
    importlib.import_module(name)

def kib(what):
    return int(re.search(rf"{what}:\\s+(\\d+)", open("/proc/self/status").read())[1])

before = kib("VmRSS")
limit = (kib("VmData") << 10) + int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    main()
finally:
    print(json.dumps({"over": (kib("VmHWM") - before) << 10}), file=sys.stderr)
"""


@dataclass(frozen=True, slots=True)
class Ended:
    """A run: its exit code, its notes, and the most memory in bytes that it took beyond its imports."""

    code: int
    notes: list[str]
    over_bytes: int
    stdout: str


def premoe(arguments: Sequence[object], *, limit_bytes: int, imports: Sequence[str], cache: Path) -> Ended:
    """Run ``premoe`` with these arguments. ``imports``: modules that are there before the limit is set."""
    ended = subprocess.run(
        [sys.executable, "-c", _SCRIPT, ",".join(imports), str(limit_bytes), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    *notes, last = ended.stderr.splitlines()
    return Ended(ended.returncode, notes, json.loads(last)["over"], ended.stdout)
