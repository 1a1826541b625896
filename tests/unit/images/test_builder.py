"""The image builder, end to end without a container runtime: a root file system in which the program starts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from rootfs.builder import DEPLOYABLES, Builder
from support.deployable_images import CACHE, ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
BUILDER = Builder(ROOT, CACHE, offline=True)
NAME = "gateway"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gateway's image as a folder with a Dockerfile."""
    target = tmp_path_factory.mktemp("image") / NAME
    BUILDER.folder(DEPLOYABLES[NAME], target)
    return target


def test_the_dockerfile_needs_no_other_image_and_no_shell(folder: Path) -> None:
    lines = (folder / "Dockerfile").read_text().splitlines()
    assert lines[:2] == ["FROM scratch", "COPY rootfs/ /"]
    assert lines[-2:] == ["USER 65532:65532", 'ENTRYPOINT ["/opt/premoe/bin/premoe-gateway"]']
    assert not (folder / "rootfs/bin/sh").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root")
@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["/opt/premoe/bin/premoe-gateway", "--help"], "premoe-gateway"),
        (["/opt/premoe/bin/python", "-c", "import os, pwd; print(pwd.getpwuid(os.getuid()).pw_name)"], "premoe"),
        (
            ["/opt/premoe/bin/python", "-c", "import ssl; print(ssl.create_default_context().cert_store_stats())"],
            "x509",
        ),
    ],
)
def test_programs_start_in_it_as_its_user(folder: Path, command: list[str], expected: str) -> None:
    chroot = ["chroot", "--userspec", "65532:65532", str(folder / "rootfs"), *command]
    done = subprocess.run(
        chroot, env={"HOME": "/tmp", "PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout


def test_images_share_all_layers_but_their_own(tmp_path: Path) -> None:
    named = {f"localhost/{name}:1": DEPLOYABLES[name] for name in ("gateway", "expert-store")}
    digests = BUILDER.images(named, tmp_path / "images.tar")
    with tarfile.open(tmp_path / "images.tar") as tar:

        def read(path: str) -> dict[str, object]:
            file = tar.extractfile(path)
            assert file is not None
            content: dict[str, object] = json.loads(file.read())
            return content

        manifests = [read(f"blobs/{digest.replace(':', '/')}") for digest in digests.values()]
    layers = [[layer["digest"] for layer in manifest["layers"]] for manifest in manifests]  # type: ignore[attr-defined]
    assert [len(found) for found in layers] == [4, 4]
    # Python, and what every deployable needs.
    assert len(set(layers[0]) & set(layers[1])) == 2


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("buildah") is None, reason="needs root and buildah")
def test_buildah_builds_it_without_a_network(folder: Path, tmp_path: Path) -> None:
    places = ["--root", str(tmp_path / "root"), "--runroot", str(tmp_path / "run"), "--storage-driver", "vfs"]
    buildah = ["unshare", "--net", "buildah", *places]
    subprocess.run(
        [*buildah, "build", "-q", "--isolation", "chroot", "-t", "test", str(folder)], check=True, timeout=300
    )
    shown = subprocess.run([*buildah, "inspect", "--type", "image", "test"], capture_output=True, check=True)
    config = json.loads(shown.stdout)["OCIv1"]["config"]
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == ["/opt/premoe/bin/premoe-gateway"]
    subprocess.run([*buildah, "rmi", "test"], check=True, capture_output=True)
