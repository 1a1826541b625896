"""The programs of the test cluster are found, or one line says how to get them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cluster_fixtures import require_programs
from support.cluster_programs import ClusterMissing, cluster_bin, cluster_program

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def empty_bin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder given by PREMOE_CLUSTER_BIN that has no programs."""
    monkeypatch.setenv("PREMOE_CLUSTER_BIN", str(tmp_path))
    cluster_bin.cache_clear()
    yield tmp_path
    cluster_bin.cache_clear()


def printed(tools: Path, cache: Path) -> Path:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    answer = subprocess.run([tools / "build_cluster.sh", "--print"], env=environment, capture_output=True, check=True)
    return Path(answer.stdout.decode().strip())


def test_the_folder_is_keyed_by_what_goes_into_the_programs(tmp_path: Path) -> None:
    copy = tmp_path / "tools"
    for name in ("go.mod", "go.sum", "coredns/main.go", "jaeger/go.mod", "jaeger/go.sum", "build_cluster.sh"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(TOOLS / name, copy / name)
    folder = printed(copy, tmp_path)
    assert folder == printed(TOOLS, tmp_path)
    assert folder.is_relative_to(tmp_path / "premoe" / "cluster")
    with (copy / "go.mod").open("a") as file:
        file.write("// changed\n")
    assert printed(copy, tmp_path) != folder


def test_a_given_folder_wins(empty_bin: Path) -> None:
    (empty_bin / "kubectl").touch()
    assert cluster_program("kubectl") == str(empty_bin / "kubectl")


def test_a_missing_program_is_named_with_the_way_to_get_it(empty_bin: Path) -> None:
    with pytest.raises(ClusterMissing, match=r"^etcd is not built; run: make cluster-tools$"):
        cluster_program("etcd")


@pytest.mark.parametrize(("required", "outcome"), [("0", pytest.skip.Exception), ("1", pytest.fail.Exception)])
def test_tests_without_programs_skip_unless_they_must_run(
    empty_bin: Path, monkeypatch: pytest.MonkeyPatch, required: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("REQUIRE_CLUSTER", required)
    with pytest.raises(outcome, match="make cluster-tools"):
        require_programs("etcd", "kubectl")
