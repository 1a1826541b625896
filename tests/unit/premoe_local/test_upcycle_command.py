"""`premoe compress upcycle`: a dense folder in, a folder that `premoe pack` takes out, one line for what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result
from premoe_local.cli import command
from safetensors.torch import load_file
from support.dense import dense_checkpoint
from support.profiles import write_examples
from torch import Tensor


def premoe(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_a_dense_folder_becomes_one_that_packs(tmp_path: Path) -> None:
    dense = dense_checkpoint(tmp_path / "dense", "qwen3")
    given = ("compress", "upcycle", dense, "--experts", 4, "--top-k", 2, "--to", tmp_path / "moe")
    done = premoe(*given, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["family"], found["experts"], found["top_k"], found["width"]) == ("qwen3_moe", 4, 2, 48)
    packed = premoe("pack", tmp_path / "moe", "--to", tmp_path / "packs")
    assert packed.exit_code == 0, packed.output
    again = premoe(*given)
    assert (again.exit_code, again.stdout) == (4, "")
    assert "is not empty" in again.stderr
    refused = premoe(*given[:2], tmp_path / "moe", *given[3:-1], tmp_path / "twice")
    assert refused.stderr.startswith("error: ")
    assert "can be upcycled: llama, mistral, qwen3" in refused.stderr
    without = premoe(*given[:-1], tmp_path / "trained", "--steps", 2)
    assert without.exit_code == 2
    assert "give --steps and --data together" in without.stderr


def test_experts_part_in_training_and_the_rest_stays(tmp_path: Path) -> None:
    dense = dense_checkpoint(tmp_path / "dense", "mistral")
    examples = write_examples(tmp_path / "digits.jsonl", "digits", 4)
    given = ("compress", "upcycle", dense, "--experts", 2, "--top-k", 1, "--to", tmp_path / "moe")
    training = ("--steps", 3, "--data", f"digits={examples}", "--threads", 1, "--work", tmp_path / "work")
    done = premoe(*given, *training)
    assert done.exit_code == 0, done.output
    assert not list((tmp_path / "work").iterdir())
    assert premoe("pack", tmp_path / "moe", "--to", tmp_path / "packs").exit_code == 0
    made, before = tensors(tmp_path / "moe"), tensors(dense)
    layer = "model.layers.0.block_sparse_moe.experts"
    up = before["model.layers.0.mlp.up_proj.weight"]
    found = [made[f"{layer}.{expert}.w3.weight"] for expert in range(2)]
    assert all(one.shape == up.shape and not one.equal(up) for one in found)
    assert not found[0].equal(found[1])
    assert made["model.layers.0.self_attn.q_proj.weight"].equal(before["model.layers.0.self_attn.q_proj.weight"])


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: one for file in folder.glob("*.safetensors") for name, one in load_file(file).items()}
