"""Sampling settings that a checkpoint brings along."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest
from premoe_worker.recommended import FILE, recommended_sampling

from premoe_runtime.engines.params import SamplingParams
from premoe_runtime.formats.manifest import Manifest

NOTHING = SamplingParams(temperature=1.0)


@dataclass
class Pack:
    data: bytes | None

    def manifest(self) -> Manifest:
        files = [] if self.data is None else [SimpleNamespace(path=FILE)]
        return cast(Manifest, SimpleNamespace(skeleton=files))

    def read_file(self, path: str) -> bytes:
        assert path == FILE
        assert self.data is not None
        return self.data


def of(**fields: Any) -> SamplingParams:
    return recommended_sampling(Pack(json.dumps(fields).encode()))


def test_what_the_file_names_holds() -> None:
    wanted = SamplingParams(temperature=0.6, top_p=0.95, top_k=20, min_p=0.05, repetition_penalty=1.05)
    said = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.05}
    assert of(**said, do_sample=True, eos_token_id=3) == wanted
    assert of(temperature=0, top_k=None) == SamplingParams(temperature=0.0)
    assert of(do_sample=False) == recommended_sampling(Pack(None)) == NOTHING


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -1},
        {"temperature": "hot"},
        {"top_p": 0},
        {"top_k": 1.5},
        {"top_k": True},
        {"top_k": -1},
        {"min_p": 2},
        {"repetition_penalty": 0},
    ],
)
def test_values_that_cannot_be_are_logged_and_do_not_hold(
    fields: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert of(**fields) == NOTHING
    (record,) = caplog.records
    assert next(iter(fields)) in record.getMessage()


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"[" * 100_000])
def test_a_file_that_is_no_object_is_logged(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    assert recommended_sampling(Pack(data)) == NOTHING
    assert "no JSON object" in caplog.text


def test_settings_that_are_not_supported_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert of(typical_p=0.9, no_repeat_ngram_size=0) == NOTHING
    assert "sets typical_p, which" in caplog.text
