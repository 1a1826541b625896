"""Images of PreMoE for the test node, built from this checkout and this machine's Python without a registry."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rootfs.builder import DEPLOYABLES, Builder, Deployable

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "premoe" / "images"
TAG = "test"
WORKER = Deployable("", ("premoe-worker", "premoe-job"))
"""The worker without its extra: torch is 5 GB, so tests mount their own environment's packages instead."""
PROBE = Deployable("", ("premoe-worker",))
"""A Python with gRPC for pods of tests."""
ALL = {**DEPLOYABLES, "worker": WORKER, "probe": PROBE}


def reference(name: str) -> str:
    """How a pod names the image."""
    return f"localhost/premoe-{name}:{TAG}"


def build_images(names: Sequence[str], tar: Path) -> None:
    """Build images into one OCI tar. Raises BuildFailed, OSError."""
    Builder(ROOT, CACHE, offline=True).images({reference(name): ALL[name] for name in names}, tar)
