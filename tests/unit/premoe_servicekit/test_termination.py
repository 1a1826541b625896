from __future__ import annotations

import json
from pathlib import Path

import pytest
from premoe_servicekit import termination
from premoe_servicekit.termination import failure, write_last_words

from premoe_runtime.formats.errors import NotFound


def test_a_failure_is_its_reason_and_one_sentence(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write_last_words(failure(NotFound("no\nmodel", reason="MODEL_NOT_FOUND")), {"PREMOE_TERMINATION_LOG": str(log)})
    assert json.loads(log.read_text()) == {"reason": "MODEL_NOT_FOUND", "message": "no model"}
    assert log.read_text().count("\n") == 1


def test_what_nobody_raised_on_purpose_is_named_by_its_class() -> None:
    assert failure(AttributeError("no\nscores")) == {"reason": "INTERNAL", "message": "AttributeError: no scores"}


def test_a_long_message_stays_valid_json_within_what_the_kubelet_keeps(tmp_path: Path) -> None:
    log = tmp_path / "log"
    write_last_words(failure(NotFound("é" * 5000)), {"PREMOE_TERMINATION_LOG": str(log)})
    assert len(log.read_bytes()) <= termination.MAX_BYTES
    assert len(json.loads(log.read_text())["message"]) == 600


def test_outside_a_container_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "termination-log"
    monkeypatch.setattr(termination, "KUBERNETES_LOG", log)
    write_last_words({"modelId": "x"}, {})
    assert not log.exists()
    log.touch()
    write_last_words({"modelId": "x"}, {})
    assert json.loads(log.read_text()) == {"modelId": "x"}


def test_a_log_that_cannot_be_written_is_passed_over(tmp_path: Path) -> None:
    write_last_words({"modelId": "x"}, {"PREMOE_TERMINATION_LOG": str(tmp_path)})
