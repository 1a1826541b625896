"""Children of the one-machine mesh: what they end with is what the command ends with."""

from __future__ import annotations

import pytest
from premoe_local.processes import Child, LogSink

from premoe_runtime.formats.errors import InvalidInput, Unavailable


def expert_store(*arguments: str, log: LogSink = lambda name, line: None) -> Child:
    return Child("store", "premoe_expert_store.cli", arguments, log, {})


def test_a_child_that_refuses_its_input_is_bad_input_of_the_command() -> None:
    logged: list[str] = []
    child = expert_store("--port", "no port", log=lambda name, line: logged.append(line))
    try:
        with pytest.raises(InvalidInput, match=r"^store stopped with exit code 2: .*port") as caught:
            child.wait_ready(60)
    finally:
        child.stop()
    assert (caught.value.reason, str(caught.value).count("\n")) == ("PROCESS_EXITED", 0)
    assert logged == []  # it is said once


def test_a_child_that_was_killed_is_not_available() -> None:
    child = expert_store("--port", "0")
    child.kill()
    try:
        with pytest.raises(Unavailable, match=r"^store stopped by signal SIGKILL: "):
            child.check()
    finally:
        child.stop()
