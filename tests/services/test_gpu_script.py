"""The script for GPUs runs where there is none, on a tiny shape; its figures say nothing then."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", "gpu", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.timeout(600)
def test_every_part_of_the_engine_hf_runs(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = script("--shape", "tiny", "--device", "cpu", "--engine", "hf", "--rounds", "1", "--json", str(out))
    assert done.returncode == 0, done.stderr
    values = json.loads(out.read_text())["values"]
    assert "of one copy" in values["swap"]["found"]
    assert values["hf, batch 32_quarter_over_full"] > 0
    assert not values["hf"]["found"].startswith("0 patterns")
    assert values["hf, masked"]["found"] == "log probabilities differ by 0, 100% of the answers are alike"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_in_one_line() -> None:
    done = script("--rounds", "1")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "Error: there is no CUDA device here; --shape tiny --device cpu shows that the script works"
    ]


def test_no_time_is_said() -> None:
    done = script("--shape", "tiny", "--device", "cpu", "--engine", "hf", "--minutes", "0.1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("left out: no time") == 3
