"""Where the programs of the test cluster are: built by `make cluster-tools`, shared by all checkouts of one pin set."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

_BUILD_SCRIPT = Path(__file__).parents[2] / "tools" / "build_cluster.sh"


class ClusterMissing(RuntimeError):
    """A program of the test cluster has not been built here."""


@functools.cache
def cluster_bin() -> Path:
    """The folder of the programs: $PREMOE_CLUSTER_BIN, or where the build script puts them. It need not exist."""
    given = os.environ.get("PREMOE_CLUSTER_BIN")
    if given:
        return Path(given)
    printed = subprocess.run([str(_BUILD_SCRIPT), "--print"], capture_output=True, text=True, check=True, timeout=30)
    return Path(printed.stdout.strip())


def cluster_program(name: str) -> str:
    """The path of one program (or file beside the programs). Raises ClusterMissing with the line that helps."""
    path = cluster_bin() / name
    if not path.is_file():
        raise ClusterMissing(f"{name} is not built; run: make cluster-tools")
    return str(path)
