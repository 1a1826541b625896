"""Adapters on a pruned set: what goes early, what the files say, and that the merged pack is base plus adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.compression import job, tiny_data, tiny_pack
from support.exports import random_pattern

from premoe_runtime.compress.adapters import CONFIG_FILE, FACTS_FILE, WEIGHTS_FILE
from premoe_runtime.compress.early import best
from premoe_runtime.compress.method import Job
from premoe_runtime.compress.methods import light_peft
from premoe_runtime.compress.methods.light_peft import METHOD
from premoe_runtime.compress.run import run
from premoe_runtime.compress.weights import PackWeights, rows
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.storage import open_store

SHORT: dict[str, Any] = {"steps": 6, "early": 2, "rank": 2, "alpha": 4.0, "tokens": 200, "rate": 1e-2}


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> PackWeights:
    return tiny_pack(tmp_path_factory.mktemp("peft"))


@pytest.fixture(scope="module")
def done(old: PackWeights, tmp_path_factory: pytest.TempPathFactory) -> tuple[PackWeights, Path]:
    """The pack of a pattern's 8 experts with adapters on everything, and the adapter's folder."""
    folder = tmp_path_factory.mktemp("done")
    (folder / "poems.safetensors").write_bytes(random_pattern(old.manifest).to_bytes())
    task = given(old, folder, on="all", pattern=str(folder / "poems.safetensors"))
    written = run(METHOD, task, open_store(str(folder / "out")))
    (adapter,) = (folder / "adapters").glob("adapters/*/*")
    return PackWeights(open_pack(written.url)), adapter


def given(old: PackWeights, folder: Path, **settings: Any) -> Job:
    folder.mkdir(exist_ok=True)
    return job(
        METHOD, old, folder / "work", data=tiny_data(folder), adapter=str(folder / "adapters"), **SHORT | settings
    )


def test_the_merged_pack_is_the_set_plus_what_the_files_say(old: PackWeights, done: tuple[PackWeights, Path]) -> None:
    new, folder = done
    facts, config = (json.loads((folder / name).read_text()) for name in (FACTS_FILE, CONFIG_FILE))
    pairs = load_file(folder / WEIGHTS_FILE)
    pattern = random_pattern(old.manifest)
    assert folder.parent.name == pattern.pattern_id == facts["pattern_id"]
    assert facts["weights_id"] == old.manifest.weights_id
    assert new.manifest.layer_experts == (8, 8) == tuple(map(len, facts["experts"]))
    scale = config["lora_alpha"] / config["r"]
    first = round(8 / 0.75)
    moved = 0

    def change(module: str) -> torch.Tensor | float:
        a, b = (pairs.get(f"base_model.model.{module}.lora_{one}.weight") for one in "AB")
        return 0.0 if a is None or b is None else scale * (b @ a)

    for layer, experts in enumerate(facts["experts"]):
        assert set(experts) < set(pattern.ranking[layer, :first].tolist())
        assert torch.equal(new.router(layer).weight, old.router(layer).weight[experts])
        before, after = rows(old.experts(layer), experts), new.experts(layer)
        for place, expert in enumerate(experts):
            prefix = f"{old.model.experts_prefix[layer]}.{expert}"
            for name in ("gate", "up", "down"):
                added = change(f"{prefix}.{name}_proj")
                assert torch.allclose(getattr(after, name)[place], getattr(before, name)[place] + added, atol=1e-5)
                moved += bool(torch.as_tensor(added).any())
        for one in "qkvo":
            name = f"model.layers.{layer}.self_attn.{one}_proj"
            added = change(name)
            assert torch.allclose(new.tensor(f"{name}.weight"), old.tensor(f"{name}.weight") + added, atol=1e-5)
            moved += bool(torch.as_tensor(added).any())
    modules = {name.rsplit(".lora_", 1)[0] for name in pairs}
    assert sorted(module.removeprefix("base_model.model.") for module in modules) == config["target_modules"]
    assert moved > len(modules) // 2
    unmoved = "model.embed_tokens.weight"
    assert torch.equal(new.tensor(unmoved), old.tensor(unmoved))


def test_the_least_important_adapters_and_experts_go_early(done: tuple[PackWeights, Path]) -> None:
    kept = best([torch.tensor([3.0, 1.0, 2.0, 2.0])], [2], {"a": 0.1, "b": 3.0, "c": 2.0, "d": 1.0}, 0.5)
    assert kept.experts == ((0, 2),)
    assert kept.adapters == ("b", "c")
    whole = best([torch.ones(2)], [2], {"a": 0.0}, 0.9)
    assert (whole.experts, whole.adapters) == (((0, 1),), ("a",))


def test_attention_alone_by_a_score_goes_on_after_a_kill(
    old: PackWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        pass

    settings = {"score": "counts", "drop_adapters": 0.5}
    whole = run(METHOD, given(old, tmp_path / "whole", **settings), open_store(str(tmp_path / "whole")))
    monkeypatch.setattr(light_peft, "keep", lambda *given: (_ for _ in ()).throw(Crash()))
    with pytest.raises(Crash):
        METHOD.compress(given(old, tmp_path / "parts", **settings))
    monkeypatch.undo()
    again = run(METHOD, given(old, tmp_path / "parts", **settings), open_store(str(tmp_path / "parts")))
    assert again.manifest.model_id == whole.manifest.model_id
    (adapter,) = (tmp_path / "whole" / "adapters").glob("adapters/counts/*")
    modules = json.loads((adapter / CONFIG_FILE).read_text())["target_modules"]
    assert len(modules) == 4  # of 8
    assert all("self_attn" in module for module in modules)
    layer = 0
    kept = json.loads((adapter / FACTS_FILE).read_text())["experts"][layer]
    assert torch.equal(PackWeights(open_pack(whole.url)).experts(layer).down, old.experts(layer).down[kept])


def test_what_it_cannot_take_is_said_in_one_line(old: PackWeights, tmp_path: Path) -> None:
    for settings, said in (
        ({"rank": 0}, "give 1 or more"),
        ({"early": 6}, "fewer than --steps"),
        ({"drop_experts": 1.0}, "less than 1"),
    ):
        with pytest.raises(InvalidInput, match=said):
            METHOD.compress(given(old, tmp_path, **settings))
