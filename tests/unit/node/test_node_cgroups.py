"""What the test node's harness reads from the mounts of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import node_cgroups

CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "pids")


def mounts(root: Path, names: tuple[str, ...] = CONTROLLERS) -> str:
    """Lines of /proc/self/mountinfo for hierarchies of version 1 below ``root``, which are made."""
    lines = ["22 1 0:21 / / rw - ext4 /dev/root rw", f"30 22 0:26 / {root}/unified rw,nosuid - cgroup2 cgroup2 rw"]
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        lines.append(f"{40 + number} 22 0:{30 + number} / {root}/{name} rw,relatime shared:9 - cgroup cgroup rw,{name}")
    return "\n".join(lines) + "\n"


def test_hierarchies_of_version_1(tmp_path: Path) -> None:
    found = node_cgroups.hierarchies(mounts(tmp_path, ("memory", "cpu,cpuacct")))
    folder = tmp_path / "cpu,cpuacct"
    assert found == {"memory": tmp_path / "memory", "cpu": folder, "cpuacct": folder}


def test_roots_of_both_versions(tmp_path: Path) -> None:
    assert node_cgroups.roots(mounts(tmp_path, ("memory",))) == {tmp_path / "memory", tmp_path / "unified"}


def test_a_machine_with_all_of_them_will_do(tmp_path: Path) -> None:
    assert node_cgroups.problem(mounts(tmp_path)) is None


def test_version_2_alone_is_refused(tmp_path: Path) -> None:
    reason = node_cgroups.problem(mounts(tmp_path, ()))
    assert reason == "this machine mounts no cgroup v1 hierarchies for cpu, cpuacct, cpuset, memory, pids"


@pytest.mark.parametrize("name", ["kubepods", "kubepods.slice"])
def test_the_pods_of_another_kubelet_are_respected(tmp_path: Path, name: str) -> None:
    text = mounts(tmp_path)
    (tmp_path / "memory" / name).mkdir()
    assert node_cgroups.problem(text) == f"another kubelet uses this machine: {tmp_path}/memory/{name} exists"
