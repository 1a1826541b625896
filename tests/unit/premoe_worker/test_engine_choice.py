"""Which engine a worker takes, and why: nothing here needs vLLM."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from premoe_servicekit.settings import load_settings
from premoe_worker.engine import choose_engine
from premoe_worker.settings import WorkerSettings
from support.sources import MemorySource
from support.tiny import tiny_checkpoint

from premoe_runtime.engines.vllm import compat
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import Manifest


def settings(**given: Any) -> WorkerSettings:
    return WorkerSettings.model_construct(store="store:1", budget="2/4", **given)


def manifest(folder: Path, family: str = "qwen3_moe") -> Manifest:
    return MemorySource(tiny_checkpoint(folder, family)).manifest()


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were installed."""
    monkeypatch.setattr(compat, "version", lambda: "0.32.0")


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "version", lambda: None)


@pytest.mark.usefixtures("vllm")
def test_auto_is_vllm_where_it_is_installed_and_runs_the_model(tmp_path: Path) -> None:
    assert choose_engine(settings(engine="auto"), manifest(tmp_path)) == "vllm"
    assert choose_engine(settings(engine="vllm"), manifest(tmp_path)) == "vllm"
    assert choose_engine(settings(engine="hf"), manifest(tmp_path)) == "hf"


@pytest.mark.usefixtures("without")
def test_auto_is_hf_without_vllm_and_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert choose_engine(settings(engine="auto"), manifest(tmp_path)) == "hf"
    assert "the engine hf serves: vLLM is not installed" in caplog.text
    with pytest.raises(InvalidInput) as caught:
        choose_engine(settings(engine="vllm"), manifest(tmp_path))
    assert caught.value.reason == "VLLM_MISSING"


@pytest.mark.usefixtures("vllm")
def test_auto_is_hf_for_a_model_that_vllm_does_not_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    other = manifest(tmp_path, "hunyuan_v1_moe")
    assert choose_engine(settings(engine="auto"), other) == "hf"
    assert "hunyuan_v1_moe" in caplog.text
    with pytest.raises(InvalidInput, match="use the engine hf"):
        choose_engine(settings(engine="vllm"), other)


@pytest.mark.usefixtures("vllm")
def test_arguments_are_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    found = manifest(tmp_path)
    for name in ("auto", "vllm"):
        with pytest.raises(InvalidInput, match="enable_lora"):
            choose_engine(settings(engine=name, engine_arguments='{"enable_lora": true}'), found)
    with pytest.raises(InvalidInput, match="--engine vllm"):
        choose_engine(settings(engine="hf", engine_arguments='{"block_size": 32}'), found)


@pytest.mark.parametrize("given", ["[1]", "{", "3"])
def test_arguments_that_are_no_object_are_one_line(given: str) -> None:
    flags = ["--store", "store:1", "--budget", "2/4", "--engine", "vllm", "--engine-arguments", given]
    with pytest.raises(InvalidInput, match=r"--engine-arguments .*JSON object") as caught:
        load_settings(WorkerSettings, "premoe-worker", flags, {})
    assert "\n" not in str(caught.value)


def test_arguments_come_from_flags_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--store", "store:1", "--budget", "2/4", "--engine", "vllm"]
    given = '{"enforce_eager": false}'
    found = load_settings(WorkerSettings, "premoe-worker", [*flags, "--engine-arguments", given])
    assert found.vllm_arguments == {"enforce_eager": False}
    monkeypatch.setenv("PREMOE_WORKER_ENGINE_ARGUMENTS", given)
    assert load_settings(WorkerSettings, "premoe-worker", flags).vllm_arguments == {"enforce_eager": False}
