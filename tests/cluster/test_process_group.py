"""Programs that tests start are named when they end, and end when they should."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.process_group import ProcessEnded, ProcessGroup, wait_until


def test_a_program_that_ends_is_named_with_its_log(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path) as group:
        group.start("broken", ["sh", "-c", "echo first; echo the reason >&2; exit 3"])
        with pytest.raises(ProcessEnded, match=r"broken ended with code 3; the end of its log:\nfirst\nthe reason"):
            wait_until(lambda: False, 10, "nothing", group)


def test_programs_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    """Even SIGKILL of a test run leaves no program and no folder."""
    folder = tmp_path / "data"
    folder.mkdir()
    code = (
        "import sys, time; from pathlib import Path; from support.process_group import ProcessGroup\n"
        f"group = ProcessGroup(Path({str(tmp_path)!r}), remove=[Path({str(folder)!r})])\n"
        "print(group.start('sleeper', ['sleep', '600']), flush=True); time.sleep(600)\n"
    )
    runner = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    )
    assert runner.stdout is not None
    sleeper = Path("/proc") / runner.stdout.readline().strip()
    assert sleeper.exists()
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    runner.stdout.close()
    wait_until(lambda: not sleeper.exists() and not folder.exists(), 30, "the programs to end")


def test_close_stops_in_reverse_order_and_wakes_the_paused(tmp_path: Path) -> None:
    order = tmp_path / "order"
    folder = tmp_path / "data"
    folder.mkdir()
    script = 'trap "echo $0 >> $1; exit 0" TERM; echo up; while :; do sleep 0.05; done'
    with ProcessGroup(tmp_path / "logs", remove=[folder]) as group:
        for name in ("first", "second"):
            group.start(name, ["sh", "-c", script, name, str(order)])
            wait_until(lambda name=name: "up" in group.tail(name), 30, name, group)  # type: ignore[misc]
        group.pause("first")
    assert order.read_text().split() == ["second", "first"]
    assert not folder.exists()
