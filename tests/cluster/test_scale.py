"""50 PrunedModels with 10 fake workers each: all converge, and then the cluster is left in peace."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cluster_fixtures import control_plane, namespace
from support.control_plane import ControlPlane
from support.scale import run_scale

__all__ = ["control_plane", "namespace"]

MAX_RSS_MIB = 300


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_fifty_models_with_five_hundred_workers_converge(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    figures = run_scale(
        control_plane, namespace, tmp_path, models=50, workers_each=10, writes=10, quiet_s=20, timeout_s=400
    )
    assert figures.pods == 500
    assert figures.operator_rss_mib <= MAX_RSS_MIB
    assert figures.quiet_calls <= 2
