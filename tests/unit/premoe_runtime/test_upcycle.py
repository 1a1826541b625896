"""Dense checkpoints become ones with experts that compute the same, that packs take, and that a killed run finishes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.dense import dense_checkpoint
from transformers import AutoModelForCausalLM

from premoe_runtime.compress.upcycling import writer
from premoe_runtime.compress.upcycling.plan import plan
from premoe_runtime.compress.upcycling.siblings import Upcycling
from premoe_runtime.compress.upcycling.weights import DenseWeights
from premoe_runtime.formats.errors import Conflict, InvalidInput
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import open_store

TOKENS = torch.arange(40)[None] * 5 % 256


def upcycled(folder: Path, to: Path, **settings: Any) -> writer.Upcycled:
    source = open_source(str(folder))
    planned = plan(source, Upcycling(**settings))
    return writer.write(source, planned, DenseWeights(source.store, planned.what), str(to))


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=TOKENS).logits
    return found


@pytest.mark.parametrize("family", ["qwen3", "llama", "mistral"])
def test_an_upcycled_model_computes_what_the_dense_one_does(family: str, tmp_path: Path) -> None:
    before = logits(dense_checkpoint(tmp_path / "dense", family, shards=True))
    for name, settings in {
        "copies": {"experts": 4, "top_k": 2},
        "parts": {"experts": 6, "top_k": 4, "split": 2},
    }.items():
        upcycled(tmp_path / "dense", tmp_path / name, **settings)
        assert torch.allclose(logits(tmp_path / name), before, rtol=1e-4, atol=1e-4)
    packed = write_pack(open_source(str(tmp_path / "parts")), open_store(str(tmp_path / "packs")))
    manifest = open_pack(packed.url).manifest()
    assert (manifest.layer_experts, manifest.top_k, manifest.router.renormalise) == ((6, 6), 4, True)


def test_defaults_of_a_dense_class_stay_and_tied_embeddings(tmp_path: Path) -> None:
    """Classes differ in what a missing key means: rope, epsilon, window."""
    folder = dense_checkpoint(tmp_path / "dense", "llama", tie_word_embeddings=True, rms_norm_eps=1e-6)
    config = json.loads((folder / "config.json").read_text())
    for name in ("rope_parameters", "rms_norm_eps", "head_dim"):
        config.pop(name)
    (folder / "config.json").write_text(json.dumps(config))
    upcycled(folder, tmp_path / "moe", experts=2, top_k=1)
    assert torch.allclose(logits(tmp_path / "moe"), logits(folder), rtol=1e-4, atol=1e-4)


def test_noise_sets_experts_apart_and_a_router_sends_tokens_to_all(tmp_path: Path) -> None:
    dense_checkpoint(tmp_path / "dense", "qwen3")
    upcycled(tmp_path / "dense", tmp_path / "moe", experts=4, top_k=1, noise=0.1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "moe", local_files_only=True).eval()
    gate_up = model.model.layers[0].mlp.experts.gate_up_proj.detach()
    spread = float((gate_up[0] - gate_up[1]).std() / gate_up[0].std())
    assert 0.1 < spread < 0.2  # 0.1 · √2
    seen = list[torch.Tensor]()
    model.model.layers[0].mlp.gate.register_forward_hook(lambda *call: seen.append(call[2][2]))
    model(input_ids=TOKENS)
    assert set(seen[0].flatten().tolist()) == {0, 1, 2, 3}


def test_a_killed_run_goes_on_to_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Crash(BaseException):
        pass

    dense_checkpoint(tmp_path / "dense", "qwen3")
    settings = {"experts": 2, "top_k": 1, "noise": 0.1}
    upcycled(tmp_path / "dense", tmp_path / "whole", **settings)
    read, chunks = list[int](), writer._chunks

    def dying(*given: Any, **rest: Any) -> Any:
        read.append(1)
        if len(read) == 3:
            raise Crash
        return chunks(*given, **rest)

    monkeypatch.setattr(writer, "_chunks", dying)
    with pytest.raises(Crash):
        upcycled(tmp_path / "dense", tmp_path / "parts", **settings)
    assert not (tmp_path / "parts").exists()
    monkeypatch.undo()
    assert upcycled(tmp_path / "dense", tmp_path / "parts", **settings).resumed_files == 2
    for file in sorted((tmp_path / "whole").glob("*.safetensors")):
        again = load_file(tmp_path / "parts" / file.name)
        assert all(torch.equal(value, again[name]) for name, value in load_file(file).items())
    with pytest.raises(Conflict, match="is not empty"):
        upcycled(tmp_path / "dense", tmp_path / "whole", **settings)


def test_what_cannot_be_upcycled_is_said_in_one_line(tmp_path: Path) -> None:
    folder = dense_checkpoint(tmp_path / "dense", "llama")
    source = open_source(str(folder))
    for settings, said in {
        ((("experts", 4), ("top_k", 5))): "no more a token",
        ((("experts", 4), ("top_k", 1), ("split", 2))): "multiples of it",
        ((("experts", 4), ("top_k", 2), ("noise", -1.0))): "give 0 or more",
        ((("experts", 8), ("top_k", 4), ("split", 4))): "multiple of 8",
    }.items():
        with pytest.raises(InvalidInput, match=said):
            plan(source, Upcycling(**dict(settings)))  # type: ignore[arg-type]
    config = json.loads((folder / "config.json").read_text())
    for change, said in (
        ({"model_type": "gemma3"}, "can be upcycled: llama, mistral, qwen3"),
        ({"model_type": "qwen3_moe"}, "can be upcycled"),
        ({"mlp_bias": True}, "mlp_bias is set, which mixtral has no place for"),
        ({"quantization_config": {"quant_method": "fp8"}}, "give the model in 16 or 32 bits"),
        ({"auto_map": {"AutoConfig": "x.Y"}}, "never run"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(InvalidInput, match=said):
            plan(open_source(str(folder)), Upcycling(4, 2))
