import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from premoe_local.cli import command as premoe
from support.hub import hub
from support.profiles import packed_model
from support.quantised import fp8_checkpoint

from premoe_runtime.packs.reader import open_pack
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.residency.slot_layout import SlotLayout
from premoe_runtime.storage import open_store

CONFIGS = Path(__file__).parents[2] / "fixtures" / "configs"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return packed_model(tmp_path_factory.mktemp("size"))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(premoe, ["size", *arguments])


def test_a_table_says_what_fits_and_why_not(store: str) -> None:
    result = run(store, "--memory", "2MiB", "--context", "64", "--batch", "1", "--budget", "4/4", "--budget", "4/16")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert any("4/4" in line and " yes " in line for line in lines)
    assert any("4/16" in line and " no " in line and "slots a layer" in line for line in lines)


def test_json_names_the_largest_budget_that_fits(store: str) -> None:
    result = run(store, "--memory", "1GiB", "--json")
    document = json.loads(result.stdout)
    assert document["largest"] == "4/16"
    assert document["max_slots"] == 16
    assert [fit["budget"] for fit in document["fits"]] == ["4/16", "4/12", "4/8", "4/4"]
    assert document["memory"] == 1 << 30
    assert all(fit["total"] <= document["memory"] for fit in document["fits"])


def test_without_a_memory_size_accelerators_are_counted(store: str) -> None:
    result = run(store)
    assert result.exit_code == 0, result.output
    assert "Accelerators" in result.stdout
    row = next(line for line in result.stdout.splitlines() if "RTX-4090" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")][2:] == ["1"] * 4
    assert "fits" not in result.stdout
    document = json.loads(run(store, "--json").stdout)
    assert document["memory"] is None
    assert document["fits"][0]["devices"]["H200"] == 1


def test_an_accelerator_names_a_memory_size(store: str) -> None:
    document = json.loads(run(store, "--gpu", "rtx-4090", "--json").stdout)
    assert document["memory"] == (24_564 << 20) - (1 << 30)


def test_a_child_engine_is_counted(store: str) -> None:
    thread, process = (
        json.loads(run(store, "--engine-place", kind, "--json").stdout) for kind in ("thread", "process")
    )
    assert thread["probed"] == 0
    # The embedding of 264 rows of 64 numbers in float32 is most of it.
    assert process["probed"] > 264 * 64 * 4
    assert process["fits"][0]["total"] == thread["fits"][0]["total"] + process["probed"]
    assert process["fits"][0]["host"] - thread["fits"][0]["host"] == 850 << 20


def test_a_pack_in_another_number_format(store: str) -> None:
    stored, asked = (json.loads(run(store, *more, "--json").stdout) for more in ((), ("--dtype", "bf16")))
    assert (stored["numbers"], asked["numbers"]) == ("fp32", "bf16")
    assert asked["blob"] == stored["blob"] // 2


@pytest.mark.parametrize("how", ["file", "folder"])
def test_a_config_alone_is_enough(how: str, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_bytes((CONFIGS / "pangu-ultra-moe.json").read_bytes())
    result = run(str(config if how == "file" else tmp_path), "--budget", "8/128", "--budget", "4/64")
    assert result.exit_code == 0, result.output
    rows = [line for line in result.stdout.splitlines() if "8/128" in line or "4/64" in line]
    assert "360.7 GiB" in rows[1]
    assert "number format: bf16" in result.stderr
    assert "sized, not servable: transformers has no class for it" in result.stderr


def test_packed_numbers_are_told_as_stored_and_as_held() -> None:
    result = run(str(CONFIGS / "deepseek-r1.json"), "--memory", "1TB", "--budget", "8/64")
    assert result.exit_code == 0, result.output
    assert "FP8 (e4m3, blocks of 128 x 128), the rest bf16, 42.0 MiB an expert as stored" in result.stderr
    assert "the hf engine holds it as bf16, 84.0 MiB a slot" in result.stderr


def test_a_packed_checkpoint_is_told_as_its_engine_holds_it(tmp_path: Path) -> None:
    """The pack says what is stored; slots and host tier hold what is made of it, which the engine's own layout says."""
    url = f"file://{tmp_path / 'store'}"
    write_pack(open_source(str(fp8_checkpoint(tmp_path / "model", "qwen3_moe"))), open_store(url))
    manifest = open_pack(url).manifest()
    document = json.loads(run(url, "--budget", "4/16", "--json").stdout)
    held = SlotLayout.of(manifest, None).held.blob_bytes
    assert (document["blob"], document["slot_blob"]) == (manifest.layout.blob_bytes, held)
    assert document["blob"] < document["slot_blob"]
    assert document["fits"][0]["experts"] == manifest.num_blobs * held
    assert document["numbers"].startswith("FP8 (e4m3")


def test_a_config_of_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_bytes((CONFIGS / "pangu-ultra-moe.json").read_bytes())
    with hub(tmp_path) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        result = run("hf://org/name", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["numbers"] == "bf16"


def test_nothing_that_fits_is_an_error(store: str) -> None:
    result = run(store, "--memory", "10KiB", "--json")
    assert (result.exit_code, result.stderr.count("\n")) == (7, 1)
    assert "the skeleton alone" in result.stderr
    assert json.loads(result.stdout)["largest"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (["--memory", "lots"], 2, "not a size"),
        (["--memory", "1GiB", "--budget", "5/8"], 2, "error: budget 5/8 activates 5 experts"),
        (["--memory", "1GiB", "--budget", "4/3"], 2, "error: budget '4/3' keeps fewer"),
        (["--memory", "1GiB", "--budget", "4/17"], 2, "the model has 16"),
        (["--memory", "1GiB", "--budget", "4/" + "9" * 5000], 2, "not of the form a/b"),
        (["--memory", "1GiB", "--budget", "\u0664/\u0668"], 2, "not of the form a/b"),
        (["--memory", "1GiB", "--spare", "-1"], 2, "spare is -1"),
        (["--memory", "1GiB", "--context", "9999"], 2, "outside 1 to 1024"),
        (["--memory", "1GiB", "--context", "0"], 2, "outside 1 to 1024"),
        (["--memory", "1GiB", "--batch", "0"], 2, "rows is 0"),
        (["--memory", "0"], 2, "memory is 0"),
        (["--memory", "1GiB", "--gpu", "H100"], 2, "give one of them"),
        (["--gpu", "abacus"], 2, "device 'abacus' is not known"),
        (["--dtype", "int3"], 2, "'int3' is not one of"),
    ],
)
def test_bad_input_is_one_line(store: str, arguments: list[str], code: int, what: str) -> None:
    result = run(store, *arguments)
    assert result.exit_code == code
    assert what in result.stderr
    assert result.stdout == ""
    assert (result.stderr[:7], result.stderr.count("\n")) == ("error: ", 1)


@pytest.mark.parametrize(
    ("name", "content", "code", "what"),
    [
        ("config.json", "{", 2, "is not JSON"),
        ("config.json", "[]", 2, "is not a JSON object"),
        ("config.json", '{"model_type": "llama"}', 2, "without experts"),
        ("model.safetensors", "x", 2, "is no config.json"),
    ],
)
def test_files_that_are_no_config_are_one_line(name: str, content: str, code: int, what: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    result = run(str(tmp_path / name))
    assert (result.exit_code, result.stdout) == (code, "")
    assert what in result.stderr
    assert (result.stderr[:7], result.stderr.count("\n")) == ("error: ", 1)


def test_a_hub_name_without_its_scheme_is_told_so() -> None:
    result = run("org/name")
    assert (result.exit_code, result.stderr) == (
        3,
        "error: org/name: no such file or folder; a model of a hub is hf://org/name\n",
    )


def test_no_pack_no_answer(tmp_path: Path) -> None:
    result = run(str(tmp_path), "--memory", "1GiB")
    assert result.exit_code == 3
    assert result.stderr.startswith("error: ")
