"""Flags of vLLM's own server for a pack: read back, they are the plug-in's arguments."""

from __future__ import annotations

import itertools
import json
import shlex
from pathlib import Path

import pytest
from support.tiny import tiny_checkpoint

from premoe_runtime.engines.vllm.flags import main
from premoe_runtime.engines.vllm.plan import plan_in
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import open_store


@pytest.fixture
def pack(tmp_path: Path) -> str:
    checkpoint = tiny_checkpoint(tmp_path / "model")
    return write_pack(open_source(str(checkpoint)), open_store((tmp_path / "pack").as_uri())).url


def test_flags_name_the_pack_the_slots_and_the_ranks(
    pack: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--slots", "6", "--ranks", "2", "--executor", "ray", "--rows", "4"]
    assert main([pack, str(tmp_path / "skeleton"), *asked]) == 0
    said = shlex.split(capsys.readouterr().out)
    values = dict(itertools.pairwise(said))
    plan = plan_in(json.loads(values["--additional-config"]))
    assert plan is not None
    assert (plan.pack, plan.slots, plan.rows) == (pack, (6, 6), 4)
    assert values["--tensor-parallel-size"] == "2"
    assert values["--distributed-executor-backend"] == "ray"
    assert values["--model"] == str(tmp_path / "skeleton")
    assert {"--enable-expert-parallel", "--no-enable-prefix-caching"} <= set(said)
    assert (tmp_path / "skeleton" / "config.json").is_file()
    assert not list((tmp_path / "skeleton").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--slots", "1"], "give at least 2"),
        (["--slots", "6", "--ranks", "0"], "no number of devices"),
    ],
)
def test_what_cannot_be_is_one_line_and_writes_nothing(
    pack: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], said: str
) -> None:
    assert main([pack, str(tmp_path / "skeleton"), *change]) == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1
    assert not (tmp_path / "skeleton").exists()


def test_a_folder_that_is_there_and_a_pack_that_is_not(
    pack: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([pack, str(tmp_path), "--slots", "6"]) == 2
    assert "exists already" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main([pack, str(tmp_path / "file" / "skeleton"), "--slots", "6"]) == 2
    assert "cannot be written" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([pack, str(tmp_path / "skeleton"), "--slots", "6", "--rows", "0"])
    assert capsys.readouterr().err.splitlines()[-1].endswith("argument --rows: give at least 1")
    assert main([(tmp_path / "none").as_uri(), str(tmp_path / "skeleton"), "--slots", "6"]) == 3
    assert capsys.readouterr().err.count("\n") == 1
