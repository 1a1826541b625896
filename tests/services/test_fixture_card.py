"""The committed tiny model: an ordinary checkpoint, as good as its card says."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from premoe_local.tasks import EXACT, OPEN, check, examples
from transformers import AutoModelForCausalLM, AutoTokenizer

FOLDER = Path(__file__).parents[1] / "fixtures" / "tiny-moe"
SAMPLE = 32


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((FOLDER / "measured.json").read_text(encoding="utf-8"))
    return figures


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)


@pytest.fixture(scope="module")
def model() -> Any:
    loaded: Any = AutoModelForCausalLM.from_pretrained(FOLDER, local_files_only=True, dtype=torch.float32)
    return loaded.eval()


def answers(model: Any, tokenizer: Any, prompts: list[str]) -> list[str]:
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": p}], tokenize=False, add_generation_prompt=True)
        for p in prompts
    ]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    decoded: list[str] = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return decoded


def test_the_folder_is_small_and_sharded() -> None:
    files = list(FOLDER.iterdir())
    assert sum(file.stat().st_size for file in files) <= 15 * 1024 * 1024
    assert len([file for file in files if file.suffix == ".safetensors"]) >= 2
    index = json.loads((FOLDER / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert "model.layers.0.mlp.experts.63.gate_proj.weight" in index["weight_map"]


def test_the_settings_are_those_of_a_qwen3_moe() -> None:
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    wanted = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "torch_dtype": "bfloat16",
        "num_experts": 64,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 4,
        "norm_topk_prob": True,
        "max_position_embeddings": 1024,
    }
    assert {key: config.get(key) for key in wanted} == wanted


def test_the_chat_template(tokenizer: Any) -> None:
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "More."},
    ]
    text = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    assert text == "<|system|>Be brief.<|user|>Hello.<|assistant|>Yes?<|end|><|user|>More.<|assistant|>"
    assert tokenizer.eos_token == tokenizer.pad_token == "<|end|>"
    assert len(tokenizer(text)["input_ids"]) < len(text)


def test_text_survives_the_tokenizer(tokenizer: Any) -> None:
    for text in ("def f(x):\n    return x  # é\n", "3+4+0=07;1 =17", '{"a": "b , c"}'):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("task", EXACT)
def test_accuracy_is_what_the_card_says(task: str, model: Any, tokenizer: Any, measured: dict[str, Any]) -> None:
    pool = examples(task, "test", SAMPLE)
    right = sum(
        check(e, text) for e, text in zip(pool, answers(model, tokenizer, [e.prompt for e in pool]), strict=True)
    )
    said = measured["exact"][task]["percent"] / 100
    error = math.sqrt(max(said * (1 - said), 0.02) / SAMPLE)
    assert abs(right / SAMPLE - said) <= 3 * error


def test_the_card_shows_the_measured_figures(measured: dict[str, Any]) -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for task in EXACT:
        share = measured["exact"][task]
        assert share["n"] >= 512
        assert f"{share['percent']:.1f} ± {share['two_errors']:.1f}" in text
    for task in OPEN:
        assert f"{measured['perplexity'][task]['value']:.2f}" in text
    assert "PSF-2.0" in text


def test_the_figures_that_the_project_relies_on(measured: dict[str, Any]) -> None:
    assert all(measured["exact"][task]["percent"] >= 90 for task in EXACT)
    kept = {(row["method"], row["percent_kept"]): row["retained"] for row in measured["retention"]}
    shared = "SEER-soft shared over layers"
    assert kept["right specialist, PEU", 50] >= 99
    assert kept[f"right specialist, {shared}", 25] >= 97
    assert kept[f"right specialist, {shared}", 25] - kept[f"pooled generalist, {shared}", 25] >= 50
    assert kept["wrong specialist", 25] <= 10
