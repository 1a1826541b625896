"""`premoe pack` and `premoe pack verify`: output, JSON, exit codes, one line on stderr."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from premoe_local.cli import command
from support.checkpoints import checkpoint, config
from support.tiny import tiny_checkpoint

from premoe_runtime.storage import LocalStore


def premoe(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "model", shards=2)


def pack_file(store: Path, file: str) -> Path:
    (found,) = store.glob(f"models/*/{file}")
    return found


def test_pack_then_pack_again_then_verify(source: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = premoe("pack", source, "--to", store.as_uri())
    assert first.exit_code == 0, first.output
    (pack,) = (store / "models").iterdir()
    assert first.stdout == f"packed qwen3_moe, {first.stdout.split(', ')[1].split(':')[0]}: {pack.as_uri()}\n"
    again = premoe("pack", "--to", store, source)
    assert (again.exit_code, again.stdout) == (0, f"already packed, every digest checked: {pack.as_uri()}\n")
    verified = premoe("pack", "verify", store)
    assert verified.exit_code == 0
    assert verified.stdout.startswith("good: 18 blobs, ")


def test_a_damaged_pack_is_repaired(source: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    premoe("pack", source, "--to", store)
    file = pack_file(store, "experts/layer-001.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    assert premoe("pack", "verify", store).exit_code == 5
    again = premoe("pack", source, "--to", store)
    assert (again.exit_code, again.stderr) == (0, "")
    assert again.stdout == f"repaired experts/layer-001.safetensors: {file.parent.parent.as_uri()}\n"
    assert premoe("pack", "verify", store).exit_code == 0


@pytest.mark.parametrize("kept", [(), ("vocab.json",)])
def test_a_folder_without_tokenizer_is_refused_unless_that_is_wanted(
    source: Path, tmp_path: Path, kept: tuple[str, ...]
) -> None:
    (source / "tokenizer.json").unlink()
    for name in kept:
        (source / name).write_text("{}")
    refused = premoe("pack", source, "--to", tmp_path / "store")
    assert refused.exit_code == 2
    assert "has no tokenizer" in refused.stderr
    assert "--without-tokenizer" in refused.stderr
    assert not (tmp_path / "store").exists()
    assert premoe("pack", source, "--to", tmp_path / "store", "--without-tokenizer").exit_code == 0


def test_a_folder_that_is_no_checkpoint_is_named_as_that(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "notes.json").write_text("{}")
    refused = premoe("pack", tmp_path / "photos", "--to", tmp_path / "store")
    assert refused.exit_code == 3
    assert "no config.json; is this a checkpoint folder?" in refused.stderr
    assert "tokenizer" not in refused.stderr


def test_a_read_only_place_is_one_line(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    found = premoe("pack", source, "--to", tmp_path / "store")
    assert found.exit_code == 2
    assert (
        found.stderr == f"error: {(tmp_path / 'store').as_uri()} is on a read-only file system; choose another place\n"
    )


def test_json_results(source: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    result = json.loads(premoe("pack", source, "--to", store, "--json").stdout)
    manifest = json.loads(pack_file(store, "manifest.json").read_bytes())
    assert result["model_id"] == manifest["model_id"]
    assert result["weights_id"] == manifest["weights_id"]
    assert result["url"] == (store / "models" / result["model_id"]).as_uri()
    expected = {"family": "qwen3_moe", "layers": 3, "experts": 6, "blob_bytes": 8192, "resumed_layers": 0}
    assert {key: result[key] for key in expected} == expected
    assert result["bytes_read"] >= sum(path.stat().st_size for path in source.glob("*.safetensors"))
    assert result["bytes_written"] > 3 * 6 * 8192
    assert not result["already_packed"]
    assert json.loads(premoe("pack", source, "--to", store, "--json").stdout)["already_packed"]
    verified = json.loads(premoe("pack", "verify", store, "--json").stdout)
    assert verified["good"]
    assert (verified["blobs"], verified["faults"], verified["model_id"]) == (18, [], result["model_id"])


def test_verify_names_the_first_bad_object_and_lists_all_with_json(source: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    premoe("pack", source, "--to", store)
    for layer in (1, 2):
        file = pack_file(store, f"experts/layer-00{layer}.safetensors")
        file.write_bytes(file.read_bytes()[:-1] + b"\1")
    found = premoe("pack", "verify", store)
    assert found.exit_code == 5
    assert found.stdout == ""
    assert found.stderr.count("\n") == 1
    assert found.stderr.startswith("error: pack file://")
    assert "experts/layer-001.safetensors layer 1 expert 5: does not match its digest (and 1 more)" in found.stderr
    listed = premoe("pack", "verify", store, "--json")
    assert listed.exit_code == 5
    assert [fault["object"] for fault in json.loads(listed.stdout)["faults"]] == [
        "experts/layer-001.safetensors layer 1 expert 5",
        "experts/layer-002.safetensors layer 2 expert 5",
    ]


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"model_type": "nemotron_h"}, 2, "models of type 'nemotron_h' cannot be packed"),
        ({"auto_map": {"AutoConfig": "x.Y"}}, 2, "never run"),
        ({"hidden_act": "nope"}, 2, "transformers refuses the config"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 2, "rope type dynamic"),
        ({"num_experts": 4}, 2, "has 6 rows, but config.json says 4 experts"),
        ({"hidden_size": 64}, 5, "config.json says"),
    ],
)
def test_refusals_are_one_line_and_an_exit_code(
    source: Path, tmp_path: Path, change: dict[str, object], code: int, message: str
) -> None:
    (source / "config.json").write_text(json.dumps({**config(), **change}))
    found = premoe("pack", source, "--to", tmp_path / "store")
    assert (found.exit_code, found.stdout) == (code, "")
    assert found.stderr.startswith("error: ")
    assert found.stderr.count("\n") == 1
    assert message in found.stderr
    assert not (tmp_path / "store" / "models").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["pack", "nowhere", "--to", "store"], 3, "error: nowhere: no such folder"),
        (["pack", "verify", "nowhere"], 3, "error: nowhere: no pack here"),
        (["pack", "nowhere", "--to", "ftp://x"], 3, "error: nowhere"),
        (["pack", ".", "--to", "ftp://x"], 2, "error: ftp://x: unknown scheme"),
    ],
)
def test_bad_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
) -> None:
    checkpoint(tmp_path)
    monkeypatch.chdir(tmp_path)
    found = premoe(*arguments)
    assert found.exit_code == code
    assert found.stderr.startswith(message)


def test_a_full_disk_is_exit_code_seven(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalStore, "free_bytes", lambda self: 10)
    found = premoe("pack", source, "--to", tmp_path / "store")
    assert found.exit_code == 7
    assert found.stderr.startswith("error: no space for the pack in file://")


def test_usage() -> None:
    usage = premoe("pack", "--help").stdout
    assert "SRC" in usage
    assert "--to URL" in usage
    missing = premoe("pack", "somewhere")
    assert missing.exit_code == 2
    assert "--to" in missing.stderr


@pytest.mark.parametrize("value", [0, -1, 10**30, "x", None, [], {}, 1.5])
@pytest.mark.parametrize(
    "key",
    ["hidden_size", "moe_intermediate_size", "num_experts", "num_experts_per_tok", "num_hidden_layers", "vocab_size"],
)
def test_impossible_sizes_are_one_line_and_no_warning(
    source: Path, tmp_path: Path, key: str, value: object, recwarn: pytest.WarningsRecorder
) -> None:
    place = source / "config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {key: value}))
    refused = premoe("pack", source, "--to", tmp_path / "store")
    assert refused.exit_code in (2, 5), refused.output
    assert (refused.stderr[:7], refused.stderr.count("\n")) == ("error: ", 1)
    assert "; " in refused.stderr, "nothing says what to do"
    assert not recwarn.list
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("groups", [0, -1, 3, 16])
@pytest.mark.parametrize("key", ["n_group", "topk_group"])
def test_impossible_groups_are_one_line(tmp_path: Path, key: str, groups: int) -> None:
    folder = tiny_checkpoint(tmp_path, "deepseek_v3")
    place = folder / "config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {key: groups}))
    refused = premoe("pack", folder, "--to", tmp_path / "store")
    if (key, groups) == ("topk_group", 3):  # of four groups
        assert refused.exit_code == 0
        return
    assert refused.exit_code == 2
    assert (refused.stderr[:7], refused.stderr.count("\n")) == ("error: ", 1)
    assert "https://" not in refused.stderr
    assert refused.stderr.endswith("; correct the checkpoint\n")
    assert not (tmp_path / "store").exists()


def test_a_pack_of_a_tenant_lies_in_its_folder(source: Path, tmp_path: Path) -> None:
    ended = premoe("pack", source, "--to", tmp_path / "store", "--tenant", "acme")
    assert ended.exit_code == 0
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["tenants"]
    assert (tmp_path / "store" / "tenants" / "acme" / "models").is_dir()
    ended = premoe("pack", source, "--to", tmp_path / "store", "--tenant", "A/B")
    assert (ended.exit_code, ended.stderr.count("\n")) == (2, 1)
    assert "tenant 'A/B' is no name" in ended.stderr
