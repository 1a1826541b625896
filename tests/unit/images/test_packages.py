"""Requirements of a deployable, and where libraries go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rootfs import libraries, packages
from rootfs.builder import Builder

PROJECT = {
    "dependencies": ["base>=1"],
    "optional-dependencies": {
        "store": ["client>=2", "base>=1"],
        "local": ["premoe[store,web]", "plots"],
        "web": ["http"],
    },
}


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("", ["base>=1"]),
        ("store", ["base>=1", "client>=2"]),
        ("local", ["base>=1", "plots", "http", "client>=2"]),
    ],
)
def test_requirements(extra: str, expected: list[str]) -> None:
    assert packages.requirements(PROJECT, extra) == expected


def test_unknown_extra() -> None:
    with pytest.raises(KeyError):
        packages.requirements(PROJECT, "missing")


@pytest.mark.parametrize(
    ("library", "expected"),
    [
        ("/lib64/ld-linux-x86-64.so.2", "lib64/ld-linux-x86-64.so.2"),
        ("/usr/lib/libz.so.1", "usr/lib/libz.so.1"),
        ("/opt/python/lib/libpython3.11.so.1.0", "usr/lib/libpython3.11.so.1.0"),
    ],
)
def test_place(library: str, expected: str) -> None:
    assert libraries.place(Path(library)) == Path(expected)


def test_copies_what_no_root_has(tmp_path: Path) -> None:
    loader = next(path for path in libraries.closure([Path("/bin/sh")]) if "ld-linux" in path.name)
    others = libraries.closure([Path("/bin/sh")]) - {loader}
    base, root = tmp_path / "base", tmp_path / "root"
    libraries.copy_into(base, [loader])
    libraries.copy_into(root, {loader, *others, base / "own.so"}, present=[base])
    assert libraries.shared_objects(base) == [base / libraries.place(loader)]
    assert libraries.shared_objects(root) == sorted(root / libraries.place(path) for path in others)


def test_layers_above_hold_only_what_differs(tmp_path: Path) -> None:
    layer, root = tmp_path / "layer", tmp_path / "root"
    for folder, texts in ((layer, {"same": "1", "changed": "1"}), (root, {"same": "1", "changed": "2", "new": "1"})):
        folder.mkdir()
        for name, text in texts.items():
            (folder / name).write_text(text)
        (folder / "link").symlink_to("same")
    (layer / "moved").symlink_to("same")
    (root / "moved").symlink_to("changed")
    packages.drop_equal(root, layer)
    assert sorted(path.name for path in root.iterdir()) == ["changed", "moved", "new"]


def test_layers_that_nobody_asked_for_in_a_month_go(tmp_path: Path) -> None:
    builder = Builder(tmp_path, tmp_path / "cache")

    def layer(key: str) -> Path:
        return builder.cached(("base", key), lambda root: (root / "file").write_text(key))

    old, used = layer("old"), layer("used")
    old.with_suffix(".tar").write_text("tar")
    for folder in (old, used):
        os.utime(folder, (0, 0))
    assert layer("used") == used
    new = layer("new")
    assert sorted((tmp_path / "cache").iterdir()) == sorted([used, new])
