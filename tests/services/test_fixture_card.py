"""The committed tiny models: ordinary checkpoints, as good as their cards say."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from premoe_local.tasks import EXACT, OPEN, check, examples
from premoe_local.tasks.wordings import KINDS, PLAIN, STRANGERS
from transformers import AutoModelForCausalLM, AutoTokenizer

FIXTURES = Path(__file__).parents[1] / "fixtures"
SAMPLE = {"tiny-moe": 32, "tiny-moe-natural": 16}
FULL = {"tiny-moe": 90, "tiny-moe-natural": 70}
"""Exact match of the whole model, per cent, in every task."""
GOALS: dict[tuple[str, str], dict[float, float]] = {
    ("tiny-moe", "own split"): {50: 99.5, 25: 99, 12.5: 95},
    ("tiny-moe", "as served"): {50: 99.5, 25: 99, 12.5: 96},
    ("tiny-moe-natural", "own split"): {50: 99, 25: 89, 12.5: 62},
    ("tiny-moe-natural", "as served"): {50: 99, 25: 86, 12.5: 60},
}
"""Per cent of that which the right specialists by impact keep, by per cent of experts kept."""


@pytest.fixture(scope="module", params=SAMPLE)
def folder(request: pytest.FixtureRequest) -> Path:
    return FIXTURES / str(request.param)


@pytest.fixture(scope="module")
def measured(folder: Path) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    return figures


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
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


def test_the_folder_is_small_and_sharded(folder: Path) -> None:
    files = list(folder.iterdir())
    assert sum(file.stat().st_size for file in files) <= 15 * 1024 * 1024
    assert len([file for file in files if file.suffix == ".safetensors"]) >= 2
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert "model.layers.0.mlp.experts.63.gate_proj.weight" in index["weight_map"]


def test_the_settings_are_those_of_a_qwen3_moe(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
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
def test_accuracy_is_what_the_card_says(
    task: str, folder: Path, model: Any, tokenizer: Any, measured: dict[str, Any]
) -> None:
    sample = SAMPLE[folder.name]
    pool = examples(task, "test", sample)
    right = sum(
        check(e, text) for e, text in zip(pool, answers(model, tokenizer, [e.prompt for e in pool]), strict=True)
    )
    said = measured["exact"][task]["percent"] / 100
    error = math.sqrt(max(said * (1 - said), 0.02) / sample)
    assert abs(right / sample - said) <= 3 * error


def test_the_card_shows_the_measured_figures(folder: Path, measured: dict[str, Any]) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    for task in EXACT:
        share = measured["exact"][task]
        assert share["n"] >= 512
        assert f"{share['percent']:.1f} ± {share['two_errors']:.1f}" in text
    for task in OPEN:
        assert f"{measured['perplexity'][task]['value']:.2f}" in text
    for row in measured["retention"]:
        assert f"**{row['retained']:.1f}**" in text
    wordings = measured["wordings"]
    assert [row["kind"] for row in wordings["kinds"]] == [PLAIN, *KINDS]
    assert [row["family"] for row in wordings["strangers"]] == list(STRANGERS)
    for row in wordings["kinds"]:
        cells = " | ".join(f"{row[key]:.1f}" for key in ("exact", "recognised", "abstained", "wrong"))
        assert f"| `{row['kind']}` | {row['role']} | {cells} |" in text
    for row in wordings["strangers"]:
        assert f"| `{row['family']}` | {row['role']} |" in text
    assert "PSF-2.0" in text


def test_the_figures_that_the_project_relies_on(folder: Path, measured: dict[str, Any]) -> None:
    assert all(measured["exact"][task]["percent"] >= FULL[folder.name] for task in EXACT)
    assert measured["calibration_seeds"] >= 2
    kept = {
        (row["how"], row["metric"], row["allocation"], row["percent_kept"]): row["retained"]
        for row in measured["retention"]
    }
    for how in ("own split", "as served"):
        for share, goal in GOALS[folder.name, how].items():
            assert kept[how, "impact", "shared", share] >= goal, (how, share)
    for share in (25, 12.5):
        best = kept["own split", "impact", "shared", share]
        assert all(best >= kept["own split", rule, "uniform", share] for rule in ("impact", "peu", "seer", "random"))
        static = [value for (how, *_, at), value in kept.items() if (how, at) == ("generalist", share)]
        assert best - max(static) >= 30
        assert kept["wrong specialist", "impact", "shared", share] <= 20
