"""`premoe demo` on the fixture: the report is what it says, and nothing is left behind."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from premoe_local import tasks
from support.processes import environ

pytestmark = pytest.mark.timeout(300)  # every mesh is four processes, and a worker imports torch

FIXTURE = Path(__file__).parents[1] / "fixtures" / "tiny-moe"
FIELDS = [
    "domain",
    "task",
    "decision",
    "score",
    "blobs_loaded",
    "bytes_loaded",
    "swap_ms",
    "tokens_per_s",
    "answer",
    "correct",
]
START = "import sys; from premoe_local.cli import main; main(sys.argv[1:])"


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The demo, with its temporary files in ``folder``."""
    return subprocess.Popen(
        [sys.executable, "-c", START, "demo", "--fixture", str(FIXTURE), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ({"TMPDIR": str(folder)}),
    )


@pytest.mark.timeout(600)
def test_the_demo_reports_what_it_measured(tmp_path: Path) -> None:
    report, work = tmp_path / "report.json", tmp_path / "work"
    work.mkdir()
    before = set(psutil.Process().children())
    process = start(work, "--requests", "2", "--json", str(report))
    out, err = process.communicate(timeout=550)
    assert process.returncode == 0, err
    assert not list(work.iterdir())
    assert set(psutil.Process().children()) <= before
    assert re.search(r"^console: http://127\.0\.0\.1:\d+/ while prompts are sent$", err, re.MULTILINE)
    assert "Requests" in out
    assert "In all, at budget 4/16" in out
    document = json.loads(report.read_text())
    assert set(document) == {"requests", "summary"}
    requests, summary = document["requests"], document["summary"]
    assert len(requests) == 2 * len(tasks.STORED) + len(tasks.UNKNOWN)
    assert all(list(request) == FIELDS for request in requests)
    assert {request["domain"] for request in requests} == {*tasks.STORED, *tasks.UNKNOWN}
    assert set(summary) == {"experts_total_bytes", "experts_resident_bytes", "accuracy"}
    assert list(summary["accuracy"]) == ["full", "specialist", "generalist", "random"]
    # 18 of 64 slots: 16 kept and 2 spare.
    assert summary["experts_resident_bytes"] * 64 == summary["experts_total_bytes"] * 18
    judged = [request for request in requests if request["domain"] in tasks.EXACT]
    assert summary["accuracy"]["specialist"] == sum(request["correct"] for request in judged) / len(judged)
    assert summary["accuracy"]["specialist"] > summary["accuracy"]["generalist"]
    assert any(request["bytes_loaded"] for request in requests)
    recognised = [request for request in judged if request["decision"] == "specialist"]
    assert recognised
    assert {request["task"] for request in requests if request["decision"] != "specialist"} <= {None}


@pytest.mark.timeout(700)
def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    process = start(tmp_path)
    children: list[psutil.Process] = []
    until = time.monotonic() + 500  # profiling comes first
    try:
        while not children and time.monotonic() < until and process.poll() is None:
            children = psutil.Process(process.pid).children(recursive=True)
            time.sleep(0.05)
        assert children
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
    finally:
        process.kill()
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    assert not list(tmp_path.iterdir())


def test_a_wrong_folder_is_one_line(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", START, "demo", "--fixture", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=environ(),
    )
    assert ended.returncode == 3
    (line,) = ended.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert "--fixture" in line
