"""What the script for GPUs does with vLLM, on the CPU and a tiny shape."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]


def test_every_part_of_the_engine_vllm_runs(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    options = ["--shape", "tiny", "--device", "cpu", "--engine", "vllm", "--rounds", "1", "--json", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "gpu", *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    values = json.loads(out.read_text())["values"]
    assert values["vllm, batch 32_quarter_over_full"] > 0
    assert not values["vllm"]["found"].startswith("0 patterns")
    assert values["vllm, masked"]["found"] == "log probabilities differ by 0, 100% of the answers are alike"
    assert values["wiped"]["found"].endswith("and no other")
