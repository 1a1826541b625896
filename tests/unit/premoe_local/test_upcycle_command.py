"""`premoe compress upcycle`: a dense folder in, a folder that `premoe pack` takes out, one line for what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner, Result
from premoe_local.cli import command
from support.dense import dense_checkpoint


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
