"""Where no node can run, one line says why; REQUIRE_E2E=1 makes that a failure."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from support import node
from support.node import NodeUnavailable, running_node, why_unavailable
from support.node_fixtures import skip_or_fail

ERROR = NodeUnavailable("a node needs root: namespaces, mounts and control groups")


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(node, "_effective_capabilities", lambda: -1)


def test_other_users_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NodeUnavailable, match="needs root"):
        with running_node(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("as_root")
def test_a_root_without_capabilities_is_told_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "_effective_capabilities", lambda: 1 << 21)
    assert why_unavailable() == (
        "a node needs the capabilities CAP_NET_ADMIN, CAP_SYS_CHROOT, CAP_MKNOD, which root lacks here"
    )


@pytest.mark.usefixtures("as_root")
def test_missing_programs_are_named_with_the_line_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    present = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name in ("runc", "nft") else present(name) or "/bin/true")
    assert why_unavailable() == "runc, nft not installed; run: make node-tools"


def test_skipped_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUIRE_E2E", raising=False)
    with pytest.raises(pytest.skip.Exception, match="needs root"):
        skip_or_fail(ERROR)


def test_failed_where_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUIRE_E2E", "1")
    with pytest.raises(pytest.fail.Exception, match="needs root"):
        skip_or_fail(ERROR)
