"""`premoe export` and `premoe import-mask`: output, JSON, exit codes, one line on stderr."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from premoe_local.cli import command
from support.exports import packed, random_pattern, stock_model
from support.live_store import live_store

from premoe_runtime.formats.pattern_set import PatternSet
from premoe_runtime.offline.patterns import library
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.storage import open_store


def premoe(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def document(*arguments: object) -> dict[str, object]:
    result = premoe(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A packed model with a live set of three tasks."""
    return live_store(tmp_path_factory.mktemp("export"))


def test_a_task_becomes_a_checkpoint_that_packs_again(store: str, tmp_path: Path) -> None:
    done = document("export", store, "--pattern", "digits", "--budget", "4/8", "--to", tmp_path / "cut")
    assert done["experts"] == [8, 8]
    assert done["rescales"] == ""
    assert done["url"] == (tmp_path / "cut").as_uri()
    shown = document("patterns", "show", store, "digits")
    assert shown["pattern_id"] == done["pattern_id"]
    packing = document("pack", tmp_path / "cut", "--to", tmp_path / "again")
    assert packing["experts"] == 8
    assert premoe("pack", "verify", tmp_path / "again").exit_code == 0
    again = premoe("export", store, "--pattern", "digits", "--budget", "4/8", "--to", tmp_path / "cut")
    assert (again.exit_code, again.stdout) == (4, "")
    assert again.stderr.startswith("error: ")
    assert "is not empty" in again.stderr
    said = premoe("export", store, "--pattern", "digits", "--budget", "4/8", "--to", tmp_path / "other")
    assert said.stdout.startswith("exported qwen3_moe with 8 of 16 experts a layer, ")


def test_a_pattern_may_be_a_file(store: str, tmp_path: Path) -> None:
    pattern = random_pattern(open_pack(store).manifest())
    (tmp_path / "poems.safetensors").write_bytes(pattern.to_bytes())
    done = document(
        "export", store, "--pattern", tmp_path / "poems.safetensors", "--budget", "4/8", "--to", tmp_path / "cut"
    )
    assert done["pattern_id"] == pattern.pattern_id


def test_an_imported_mask_is_shown_exported_and_taken_back(store: str, tmp_path: Path) -> None:
    mask = [[float(expert % 2 == layer) for expert in range(16)] for layer in range(2)]
    file = tmp_path / "odd.json"
    file.write_text(json.dumps(mask))
    before = library.live_set_id(open_store(store), open_pack(store).manifest().weights_id)
    found = document("import-mask", file, "--pack", store, "--task", "odd")
    assert (found["format"], found["kept"], found["budget"], found["live"]) == ("easy-ep", [8, 8], "4/8", False)
    assert library.live_set_id(open_store(store), str(found["weights_id"])) == before
    shown = document("patterns", "show", store, "odd", "--set", found["set_id"], "--budget", "4/8")
    assert shown["layers"] == [list(range(layer, 16, 2)) for layer in (0, 1)]
    exported = document("export", store, "--mask", file, "--to", tmp_path / "cut")
    kept = json.loads((tmp_path / "cut/premoe_experts.json").read_text())["layers"]
    assert kept == shown["layers"]
    by_name = document(
        "export", store, "--pattern", "odd", "--set", found["set_id"], "--budget", "4/8", "--to", tmp_path / "named"
    )
    assert by_name["num_bytes"] != 0
    assert json.loads((tmp_path / "named/premoe_experts.json").read_text())["layers"] == kept
    assert exported["experts"] == [8, 8]
    back = document("import-mask", tmp_path / "cut/premoe_experts.json", "--pack", store, "--task", "back")
    assert (back["format"], back["kept"]) == ("json", [8, 8])
    said = premoe("import-mask", file, "--pack", store, "--task", "odd", "--set", found["set_id"])
    assert "budget that keeps it" in said.stdout
    assert "the set is not live" in said.stderr


def test_prompts_make_a_task_that_is_recognised(store: str, tmp_path: Path) -> None:
    mask, prompts = tmp_path / "mask.json", tmp_path / "prompts.jsonl"
    mask.write_text(json.dumps({"layers": [[0, 1, 2, 3]] * 2}))
    prompts.write_text("".join(json.dumps({"prompt": f"#{number}@@{number % 7}"}) + "\n" for number in range(30)))
    found = document("import-mask", mask, "--pack", store, "--task", "marks", "--prompts", prompts)
    assert found["exemplars"] == 1
    member = PatternSet.load(open_store(store).get, str(found["set_id"])).member("marks")
    assert member.cutoff is not None
    assert (member.exemplars, member.held_out) == (1, 30)
    prompts.write_text(json.dumps({"prompt": "one"}))
    few = premoe("import-mask", mask, "--pack", store, "--task", "few", "--prompts", prompts)
    assert few.exit_code == 2
    assert "at least 20 are needed" in few.stderr


def test_lists_are_cut_to_their_best(store: str, tmp_path: Path) -> None:
    file = tmp_path / "ranked.jsonl"
    file.write_text("\n".join(json.dumps({str(layer): list(range(15, -1, -1))}) for layer in range(2)))
    every = document("import-mask", file, "--pack", store, "--task", "ranked")
    assert (every["kept"], every["semantics"]) == ([16, 16], "slice")
    done = document("export", store, "--mask", file, "--keep", "5", "--to", tmp_path / "cut")
    assert (done["experts"], done["top_k"]) == ([5, 5], 4)
    assert json.loads((tmp_path / "cut/premoe_experts.json").read_text())["layers"] == [[11, 12, 13, 14, 15]] * 2
    budget = document("export", store, "--mask", file, "--budget", "2/6", "--to", tmp_path / "six")
    assert (budget["experts"], budget["top_k"]) == ([6, 6], 2)


def test_a_mask_that_keeps_differently_many(store: str, tmp_path: Path) -> None:
    file = tmp_path / "uneven.json"
    file.write_text(json.dumps({"layers": [[0, 1, 2, 3, 4], list(range(12))]}))
    refused = premoe("export", store, "--mask", file, "--to", tmp_path / "cut")
    assert refused.exit_code == 2
    assert "--target premoe" in refused.stderr
    done = document("export", store, "--mask", file, "--target", "premoe", "--to", tmp_path / "cut")
    assert done["experts"] == [5, 12]
    said = premoe("import-mask", file, "--pack", store, "--task", "uneven")
    assert "no budget keeps just these 17 experts; 4/9 keeps a few more" in said.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (("--pattern", "digits"), 2, "--pattern needs a --budget a/b"),
        (("--budget", "4/8"), 2, "give one of --pattern, --mask and --whole"),
        (("--pattern", "nobody", "--budget", "4/8"), 3, "no task or pattern 'nobody'"),
        (("--pattern", "digits", "--budget", "4"), 2, "is not of the form a/b"),
        (("--pattern", "digits", "--budget", "4/99"), 2, "the model has 16"),
        (("--pattern", "digits", "--budget", "5/8"), 2, "top-k is 4"),
        (("--pattern", "digits", "--budget", "4/8", "--allocation", "ragged"), 2, "transformers takes one number"),
    ],
)
def test_what_cannot_be_exported_leaves_nothing(
    store: str, tmp_path: Path, arguments: tuple[str, ...], code: int, why: str
) -> None:
    result = premoe("export", store, *arguments, "--to", tmp_path / "cut")
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert why in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_bad_mask_leaves_nothing(store: str, tmp_path: Path) -> None:
    file = tmp_path / "mask.json"
    file.write_text(json.dumps([[1.0] * 17] * 2))
    known = set(library.ids(open_store(store), "patterns")), set(library.ids(open_store(store), "sets"))
    result = premoe("import-mask", file, "--pack", store, "--task", "bad")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (f"error: {file}: row 0 has 17 entries, the layer has 16 experts; is it of this model?\n")
    taken = tmp_path / "taken.json"
    taken.write_text(json.dumps([[1.0] * 16] * 2))
    assert premoe("import-mask", taken, "--pack", store, "--task", "digits").exit_code == 4
    assert premoe("import-mask", taken, "--pack", store, "--task", "two words/").exit_code == 2
    assert (set(library.ids(open_store(store), "patterns")), set(library.ids(open_store(store), "sets"))) == known


@pytest.mark.parametrize("gone", ["patterns/*", "sets/*.json", "sets/*.safetensors"])
def test_a_mask_joins_no_set_that_is_not_whole(store: str, tmp_path: Path, gone: str) -> None:
    shutil.copytree(store.removeprefix("file://"), tmp_path / "store")
    for place in (tmp_path / "store").glob(gone):
        place.unlink()
    file = tmp_path / "mask.json"
    file.write_text(json.dumps([[1.0] * 16] * 2))
    before = sorted(tmp_path.rglob("*"))
    result = premoe("import-mask", file, "--pack", tmp_path / "store", "--task", "m", "--set-live")
    assert (result.exit_code, result.stdout) == (3, "")
    assert (result.stderr[:7], result.stderr.count("\n")) == ("error: ", 1)
    assert "build " in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_pattern_of_other_weights_is_refused(store: str, tmp_path: Path) -> None:
    other = packed(tmp_path, seed=3)
    (tmp_path / "other.safetensors").write_bytes(random_pattern(other.manifest()).to_bytes())
    result = premoe(
        "export", store, "--pattern", tmp_path / "other.safetensors", "--budget", "4/8", "--to", tmp_path / "cut"
    )
    assert result.exit_code == 2
    assert "belongs to weights" in result.stderr


def test_a_compressed_pack_becomes_a_checkpoint_that_stock_classes_load(store: str, tmp_path: Path) -> None:
    small = document("compress", "random", store, "--to", tmp_path / "small", "--budget", "50%")
    done = document("export", small["url"], "--whole", "--to", tmp_path / "checkpoint")
    assert done["experts"] == small["experts"] == [8, 8]
    told = json.loads((tmp_path / "checkpoint" / "premoe_compression.json").read_text())
    assert (told["method"], told["weights_id"]) == ("random", open_pack(store).manifest().weights_id)
    assert "all experts of a pack" in (tmp_path / "checkpoint" / "README.md").read_text()
    assert stock_model(tmp_path / "checkpoint").config.num_experts == 8
    again = document("pack", tmp_path / "checkpoint", "--to", tmp_path / "again")
    assert again["weights_id"] == small["weights_id"]
    assert open_pack(str(again["url"])).read_file("skeleton/premoe_compression.json")
    both = premoe("export", small["url"], "--whole", "--budget", "4/8", "--to", tmp_path / "other")
    assert (both.exit_code, both.stderr.count("\n")) == (2, 1)
