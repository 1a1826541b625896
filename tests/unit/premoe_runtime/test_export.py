"""Every family, one row each: cut to a pattern's experts, loaded by the stock class, equal to the restricted model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from support.exports import PROMPTS, cut_to, pack_of, packed, random_pattern, restricted_logits, stock_model
from support.family_rows import ROWS, Row
from support.oracle import stock_logits
from support.processor import INTEL
from support.tiny import prune, tiny_checkpoint

from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.choices import Semantics
from premoe_runtime.formats.errors import Conflict, CorruptData, Exhausted, InvalidInput
from premoe_runtime.formats.manifest import RouterSpec
from premoe_runtime.offline.export.cut import Spread, kept_by, rescaling
from premoe_runtime.offline.export.writer import export
from premoe_runtime.packs.verify import verify_pack
from premoe_runtime.storage import LocalStore

BIT_EQUAL = {"gpt_oss", "granitemoe"}
"""Rows whose routers see nothing but the chosen logits; the others add up as many scores in another order."""
ROUNDING = 1e-5 if INTEL else 5e-5
each_row = pytest.mark.parametrize(("name", "row"), ROWS.items(), ids=ROWS)


def exact_semantics(router: RouterSpec) -> Semantics:
    return "slice" if rescaling(router) else "selection"


@each_row
def test_a_cut_checkpoint_is_the_restricted_model(tmp_path: Path, name: str, row: Row) -> None:
    source = packed(tmp_path, row.family, **row.overrides)
    manifest = source.manifest()
    top_k = manifest.top_k
    semantics = exact_semantics(manifest.router)
    chosen = cut_to(source, f"{top_k}/8", semantics=semantics)
    assert chosen.layer_experts == (8, 8)
    export(source, chosen, str(tmp_path / "cut"))
    stock = stock_model(tmp_path / "cut")
    found, expected = stock_logits(stock, PROMPTS), restricted_logits(source, chosen.kept, top_k, semantics)
    if name in BIT_EQUAL and INTEL:
        assert torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=ROUNDING, atol=ROUNDING)
    whole = restricted_logits(source, manifest.exists, top_k)
    assert not torch.allclose(whole, expected, rtol=1e-2, atol=1e-2)
    again = pack_of(tmp_path / "cut", tmp_path / "again")
    assert not verify_pack(again).faults
    assert again.manifest().layer_experts == (8, 8)
    assert torch.equal(restricted_logits(again, again.manifest().exists, top_k), found)
    digests = [[manifest.layers[layer].digests[expert] for expert in chosen.experts(layer)] for layer in range(2)]
    assert [list(layer.digests) for layer in again.manifest().layers] == digests


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "deepseek_v3", "ernie4_5_moe", "hunyuan_v1_moe"])
def test_a_smaller_budget_lowers_the_top_k(tmp_path: Path, name: str) -> None:
    source = packed(tmp_path, ROWS[name].family, **ROWS[name].overrides)
    semantics = exact_semantics(source.manifest().router)
    chosen = cut_to(source, "2/8", semantics=semantics)
    export(source, chosen, str(tmp_path / "cut"))
    found = stock_logits(stock_model(tmp_path / "cut"), PROMPTS)
    expected = restricted_logits(source, chosen.kept, 2, semantics)
    torch.testing.assert_close(found, expected, rtol=ROUNDING, atol=ROUNDING)
    assert pack_of(tmp_path / "cut", tmp_path / "again").manifest().top_k == 2


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if "plain" in name or row.family in ("olmoe",)])
def test_what_rescales_is_refused_and_is_the_sliced_model(tmp_path: Path, name: str) -> None:
    source = packed(tmp_path, ROWS[name].family, **ROWS[name].overrides)
    reason = rescaling(source.manifest().router)
    if not reason:
        assert cut_to(source, "4/8").rescales == ""
        return
    with pytest.raises(InvalidInput, match=r"does not renormalise.*--accept-rescale") as refused:
        cut_to(source, "4/8")
    assert refused.value.reason == "NOT_EXACT"
    assert not cut_to(source, "4/16").rescales  # nothing is cut
    chosen = cut_to(source, "4/8", accept_rescale=True)
    export(source, chosen, str(tmp_path / "cut"))
    found = stock_logits(stock_model(tmp_path / "cut"), PROMPTS)
    torch.testing.assert_close(found, restricted_logits(source, chosen.kept, 4, "slice"), rtol=ROUNDING, atol=ROUNDING)
    assert not torch.allclose(found, restricted_logits(source, chosen.kept, 4), rtol=1e-2, atol=1e-2)
    assert "Not the model that runs" in (tmp_path / "cut/README.md").read_text()
    assert json.loads((tmp_path / "cut/config.json").read_text())["premoe"]["semantics"] == "slice"


def test_a_ragged_cut_is_for_packs_only(tmp_path: Path) -> None:
    source = packed(tmp_path)
    with pytest.raises(InvalidInput, match="transformers takes one number for all"):
        cut_to(source, "4/8", spread="ragged", allocation="shared", seed=2)
    with pytest.raises(InvalidInput, match="build one with --allocation shared"):
        cut_to(source, "4/8", spread="ragged", target="premoe")
    chosen = cut_to(source, "4/8", spread="ragged", target="premoe", allocation="shared", seed=2)
    assert sorted(chosen.layer_experts) == [7, 9]
    export(source, chosen, str(tmp_path / "cut"))
    again = pack_of(tmp_path / "cut", tmp_path / "again")
    assert again.manifest().layer_experts == chosen.layer_experts
    found = restricted_logits(again, again.manifest().exists, 4)
    torch.testing.assert_close(found, restricted_logits(source, chosen.kept, 4), rtol=ROUNDING, atol=ROUNDING)
    assert "different numbers of experts" in (tmp_path / "cut/README.md").read_text()


def test_an_uneven_pack_is_cut_to_what_every_layer_has(tmp_path: Path) -> None:
    checkpoint = prune(tiny_checkpoint(tmp_path, "mixtral"), (16, 10))
    source = pack_of(checkpoint, tmp_path / "store")
    with pytest.raises(InvalidInput, match="the layers would keep 12/10 experts"):
        cut_to(source, "4/12")
    chosen = cut_to(source, "4/10")
    export(source, chosen, str(tmp_path / "cut"))
    found = stock_logits(stock_model(tmp_path / "cut"), PROMPTS)
    torch.testing.assert_close(found, restricted_logits(source, chosen.kept, 4), rtol=ROUNDING, atol=ROUNDING)


def test_it_says_where_it_comes_from(tmp_path: Path) -> None:
    source = packed(tmp_path, "deepseek_v3")
    manifest, chosen = source.manifest(), cut_to(source, "4/8")
    done = export(source, chosen, str(tmp_path / "cut"))
    assert done.url == (tmp_path / "cut").as_uri()
    assert done.num_bytes == sum(file.stat().st_size for file in (tmp_path / "cut").rglob("*") if file.is_file())
    config = json.loads((tmp_path / "cut/config.json").read_text())
    assert config["n_routed_experts"] == 8
    said = config["premoe"]
    assert said["model_id"] == manifest.model_id
    assert said["weights_id"] == manifest.weights_id
    assert said["pattern_id"] == chosen.pattern.pattern_id
    assert (said["task"], said["score"], said["budget"], said["allocation"], said["experts_before"]) == (
        "poems", "peu", "4/8", "equal-per-group", 16,
    )  # fmt: skip
    experts = json.loads((tmp_path / "cut/premoe_experts.json").read_text())
    assert experts["layers"] == [list(chosen.experts(layer)) for layer in range(2)]
    assert [np.flatnonzero(row).tolist() for row in chosen.kept] == experts["layers"]
    assert {path.name for path in (tmp_path / "cut").iterdir()} >= {"tokenizer.json", "README.md", "config.json"}
    for shard in (tmp_path / "cut").glob("*.safetensors"):
        with safe_open(shard, "pt") as file:
            assert file.metadata() == {"format": "pt"}
    assert not list(tmp_path.glob(".*"))


def test_predicted_blocks_are_said_to_be_gone(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "deepseek_v3")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": 1}))
    source = pack_of(folder, tmp_path / "store")
    export(source, cut_to(source, "4/8"), str(tmp_path / "cut"))
    assert json.loads((tmp_path / "cut/config.json").read_text())["num_nextn_predict_layers"] == 0
    assert "Multi-token prediction" in (tmp_path / "cut/README.md").read_text()


def test_a_stopped_export_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, to = packed(tmp_path), tmp_path / "out" / "cut"
    to.mkdir(parents=True)
    written: list[str] = []
    stage = LocalStore.writer

    def stopping(store: LocalStore, path: str) -> object:
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt
        return stage(store, path)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "writer", stopping)
        with pytest.raises(KeyboardInterrupt):
            export(source, cut_to(source, "4/8"), str(to))
    assert not list(to.iterdir())
    staged = {path.name for path in (to.parent / ".cut.partial/files").iterdir()}
    assert staged
    done = export(source, cut_to(source, "4/8"), str(to))
    assert done.resumed_files == len(staged)
    assert torch.isfinite(stock_logits(stock_model(to), PROMPTS)).all()
    assert not list(to.parent.glob(".*"))


def test_another_export_does_not_take_over_what_was_staged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, to = packed(tmp_path), tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "move_prefix", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            export(source, cut_to(source, "4/8"), str(to))
    done = export(source, cut_to(source, "4/8", seed=5), str(to))
    assert done.resumed_files == 0
    assert json.loads((to / "premoe_experts.json").read_text())["layers"] == [
        list(cut_to(source, "4/8", seed=5).experts(layer)) for layer in range(2)
    ]


def test_a_full_or_taken_place_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, chosen = packed(tmp_path), cut_to(packed(tmp_path), "4/8")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    with pytest.raises(Conflict, match="is not empty"):
        export(source, chosen, str(taken))
    with pytest.raises(InvalidInput, match="is a file"):
        export(source, chosen, str(taken / "mine.txt"))
    for nowhere in ("memory://here", "s3://bucket", "/"):
        with pytest.raises(InvalidInput, match="to write to"):
            export(source, chosen, nowhere)
    monkeypatch.setattr(LocalStore, "free_bytes", lambda store: 1000)
    with pytest.raises(Exhausted, match="no space for the checkpoint"):
        export(source, chosen, str(tmp_path / "cut"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "store", "taken"]
    assert [path.name for path in taken.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("file", ["experts/layer-001.safetensors", "skeleton/model-00001-of-00001.safetensors"])
def test_a_damaged_pack_is_no_checkpoint(tmp_path: Path, family: str, file: str) -> None:
    source = packed(tmp_path, family)
    place = next((tmp_path / "store/models").glob(f"*/{file}"))
    data = bytearray(place.read_bytes())
    expert = cut_to(source, "4/8").experts(1)[0]
    layer = source.manifest().layers[1]
    data[-1 if file.startswith("skeleton") else layer.data_offset + expert * layer.stride] ^= 1
    place.write_bytes(data)
    with pytest.raises(CorruptData, match="does not match its digest"):
        export(source, cut_to(source, "4/8"), str(tmp_path / "cut"))
    assert not (tmp_path / "cut").exists()


@pytest.mark.parametrize(
    ("budget", "spread", "why"),
    [
        ("5/8", None, "the model's top-k is 4"),
        ("4/17", None, "the model has 16"),
        ("4/10", None, "10 experts do not make 4 equal groups; give a multiple of 4"),
        ("4/4", None, "too few for 4; give 4/8 at least"),
        ("4/9", "uniform", "a cut router takes groups of one size; give --allocation equal-per-group"),
    ],
)
def test_impossible_budgets(tmp_path: Path, budget: str, spread: Spread | None, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        cut_to(packed(tmp_path, "deepseek_v3"), budget, spread=spread)


def test_patterns_of_others_are_refused(tmp_path: Path) -> None:
    source, other = packed(tmp_path / "a"), packed(tmp_path / "b", seed=1)
    pattern = random_pattern(other.manifest())
    with pytest.raises(InvalidInput, match="profile this model") as refused:
        kept_by(pattern, Budget(4, 8), "uniform", source.manifest())
    assert refused.value.reason == "WEIGHTS_MISMATCH"
