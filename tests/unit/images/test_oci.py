"""The OCI layout that the image builder writes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from rootfs.oci import Image, ImageConfig, write_images, write_layer

CONFIG = ImageConfig(entrypoint=("/bin/program", "--flag"), environment=("PATH=/bin",))
NAME = "localhost/premoe-test:7"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A root with a program, a symlink, a hard link, an empty folder and a folder for temporary files."""
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    (root / "bin/program").write_bytes(b"\x7fELF")
    (root / "bin/program").chmod(0o755)
    os.link(root / "bin/program", root / "bin/same")
    (root / "bin/alias").symlink_to("program")
    return root


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar if entry.isfile()}  # type: ignore[union-attr]


def blob(files: dict[str, bytes], descriptor: dict[str, Any]) -> bytes:
    """The content a descriptor names, its digest and size checked."""
    content = files["blobs/" + descriptor["digest"].replace(":", "/")]
    assert "sha256:" + hashlib.sha256(content).hexdigest() == descriptor["digest"]
    assert len(content) == descriptor["size"]
    return content


def test_descriptors_lead_to_the_files(folder: Path, tmp_path: Path) -> None:
    layers = [tmp_path / "1.tar", tmp_path / "2.tar"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("text")
    write_layer(folder, layers[0])
    write_layer(tmp_path / "other", layers[1])
    (digest,) = write_images([Image(NAME, layers, CONFIG)], tmp_path / "image.tar")

    files = members(tmp_path / "image.tar")
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    (entry,) = json.loads(files["index.json"])["manifests"]
    assert entry["digest"] == digest
    assert entry["annotations"]["io.containerd.image.name"] == NAME
    assert entry["annotations"]["org.opencontainers.image.ref.name"] == "7"
    manifest = json.loads(blob(files, entry))
    config = json.loads(blob(files, manifest["config"]))
    assert config["config"] == {
        "Entrypoint": ["/bin/program", "--flag"],
        "Env": ["PATH=/bin"],
        "User": "65532:65532",
        "WorkingDir": "/",
    }
    # Layers are not compressed, so the digest of the blob is that of its content, too.
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in manifest["layers"]]
    names = []
    for layer in manifest["layers"]:
        with tarfile.open(fileobj=io.BytesIO(blob(files, layer))) as tar:
            names.append(tar.getnames())
    assert names == [["bin", "bin/alias", "bin/program", "bin/same", "empty", "tmp"], ["file"]]


def test_layer_keeps_modes_and_links_and_forgets_owners_and_dates(folder: Path, tmp_path: Path) -> None:
    write_layer(folder, tmp_path / "layer.tar")
    with tarfile.open(tmp_path / "layer.tar") as tar:
        entries = {entry.name: entry for entry in tar}
    assert entries["tmp"].mode == 0o1777
    assert entries["bin/program"].mode == 0o755
    assert entries["bin/alias"].linkname == "program"
    # Hard links become files: which of two names is the link depends on the file system.
    assert entries["bin/same"].isreg()
    assert {(entry.uid, entry.gid, entry.uname, entry.mtime) for entry in entries.values()} == {(0, 0, "", 0)}


def test_equal_folders_give_equal_bytes(folder: Path, tmp_path: Path) -> None:
    images = []
    for name, mtime in (("a", 1), ("b", 10**9)):
        os.utime(folder / "bin/program", (mtime, mtime))
        write_layer(folder, tmp_path / f"{name}.tar")
        write_images([Image(NAME, [tmp_path / f"{name}.tar"], CONFIG)], tmp_path / f"{name}-image.tar")
        images.append((tmp_path / f"{name}-image.tar").read_bytes())
    assert images[0] == images[1]


def test_images_share_their_layers(folder: Path, tmp_path: Path) -> None:
    layer = tmp_path / "layer.tar"
    write_layer(folder, layer)
    other = ImageConfig(entrypoint=("/bin/same",))
    images = [Image(NAME, [layer, layer], CONFIG), Image("localhost/other:1", [layer], other)]
    digests = write_images(images, tmp_path / "images.tar")
    files = members(tmp_path / "images.tar")
    entries = json.loads(files["index.json"])["manifests"]
    assert [entry["digest"] for entry in entries] == digests
    assert [entry["annotations"]["io.containerd.image.name"] for entry in entries] == [NAME, "localhost/other:1"]
    with tarfile.open(tmp_path / "images.tar") as tar:
        names = tar.getnames()
    # The layout, the index, two manifests, two configurations and the layer.
    assert len(names) == len(set(names)) == 7


def test_failed_layer_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_layer(tmp_path / "missing", tmp_path / "layer.tar")
    assert list(tmp_path.iterdir()) == []
