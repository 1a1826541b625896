"""One image from the repository: base, dependencies, application. Unchanged layers come from a cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rootfs import packages, python_root
from rootfs.oci import Image, ImageConfig, write_images, write_layer

LAYOUT = 3
"""Part of every cache key: raised when a layer's content changes for the same input."""

KEEP_S = 30 * 24 * 3600
VARIABLES = (
    f"PATH=/{packages.ENVIRONMENT}/bin:/{python_root.PREFIX}/bin",
    # Whatever the user id that a platform picks: libraries ask for both, and only /tmp may be written.
    "HOME=/tmp",
    "USER=premoe",
    "PYTHONUNBUFFERED=1",
    "LANG=C.UTF-8",
)


@dataclass(frozen=True, slots=True)
class Deployable:
    """What an image runs."""

    extra: str
    """Extra of the distribution; empty: the base requirements alone."""
    programs: Sequence[str]
    """Programs in /opt/premoe/bin; the first is the entry point."""


DEPLOYABLES = {
    "operator": Deployable("operator", ("premoe-operator",)),
    "retrieval": Deployable("retrieval", ("premoe-retrieval",)),
    "expert-store": Deployable("expert-store", ("premoe-expert-store",)),
    "gateway": Deployable("gateway", ("premoe-gateway",)),
    "worker": Deployable("worker", ("premoe-worker", "premoe-job")),
}


@dataclass(frozen=True, slots=True)
class Builder:
    """Builds images of one repository."""

    repository: Path
    cache: Path
    offline: bool = False

    def images(self, named: Mapping[str, Deployable], target: Path) -> dict[str, str]:
        """Write images, by reference, as one OCI tar for `ctr images import`. Returns their digests by reference.

        Raises BuildFailed, OSError.
        """
        with tempfile.TemporaryDirectory(dir=self._folder()) as work:
            wheel = packages.build_wheel(self.repository, Path(work, "wheel"))
            images = []
            for number, (reference, deployable) in enumerate(named.items()):
                root, tar = Path(work, str(number)), Path(work, f"{number}.tar")
                self._application(root, deployable, wheel)
                write_layer(root, tar)
                layers = [*map(self._tar, self._roots(deployable)), tar]
                images.append(Image(reference, layers, _config(deployable)))
            return dict(zip(named, write_images(images, target), strict=True))

    def folder(self, deployable: Deployable, target: Path) -> None:
        """Write the image as a folder with a Dockerfile that needs no other image, and so no network.

        Raises BuildFailed, OSError, FileExistsError.
        """
        target.mkdir(parents=True)
        root = target / "rootfs"
        for layer in self._roots(deployable):
            shutil.copytree(layer, root, symlinks=True, dirs_exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._folder()) as work:
            self._application(root, deployable, packages.build_wheel(self.repository, Path(work)))
        (target / "Dockerfile").write_text(dockerfile(deployable))

    def _folder(self) -> Path:
        self.cache.mkdir(parents=True, exist_ok=True)
        return self.cache

    def _roots(self, deployable: Deployable) -> list[Path]:
        """Folders of the layers below the application, built when the cache lacks them.

        What every deployable needs is a layer of its own, which images share.
        """
        base = self.cached(("base", sys.version, sys.base_prefix), python_root.write_base)
        common = self._dependencies("", [base])
        return [base, common, *([self._dependencies(deployable.extra, [base, common])] if deployable.extra else [])]

    def _dependencies(self, extra: str, below: Sequence[Path]) -> Path:
        constraints = self.repository / "constraints.txt"
        wanted = packages.requirements(packages.read_project(self.repository), extra)

        def write(root: Path) -> None:
            packages.write_dependencies(root, wanted, constraints, below=below, offline=self.offline)

        return self.cached((extra or "common", sys.version, constraints.read_text(), *wanted), write)

    def _application(self, root: Path, deployable: Deployable, wheel: Path) -> None:
        scripts = packages.read_project(self.repository)["scripts"]
        programs = {name: scripts[name] for name in deployable.programs}
        packages.write_application(root, wheel, programs, self.repository / "constraints.txt")

    def cached(self, key: Sequence[str], write: Callable[[Path], object]) -> Path:
        """The folder that ``write`` fills for a key (kind first, then all that it depends on), made once."""
        digest = hashlib.sha256(json.dumps([LAYOUT, *key]).encode()).hexdigest()[:16]
        folder = self._folder() / f"{key[0]}-{digest}"
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=self.cache) as work:
                root = Path(work, "root")
                root.mkdir()
                write(root)
                try:
                    root.rename(folder)
                except OSError:
                    # Somebody else may have built the same meanwhile: theirs is as good.
                    if not folder.exists():
                        raise
            self._prune(key[0])
        os.utime(folder)
        return folder

    def _prune(self, kind: str) -> None:
        """Forget layers of a kind that nobody has asked for in a long time."""
        for folder in self.cache.glob(f"{kind}-????????????????"):
            if time.time() - folder.stat().st_mtime > KEEP_S:
                folder.with_suffix(".tar").unlink(missing_ok=True)
                shutil.rmtree(folder, ignore_errors=True)

    def _tar(self, root: Path) -> Path:
        target = root.with_suffix(".tar")
        if not target.exists():
            write_layer(root, target)
        return target


def _config(deployable: Deployable) -> ImageConfig:
    return ImageConfig(entrypoint=(f"/{packages.ENVIRONMENT}/bin/{deployable.programs[0]}",), environment=VARIABLES)


def dockerfile(deployable: Deployable) -> str:
    """The Dockerfile beside a `rootfs` folder."""
    entry = json.dumps([f"/{packages.ENVIRONMENT}/bin/{deployable.programs[0]}"])
    return (
        "FROM scratch\n"
        "COPY rootfs/ /\n"
        f"ENV {' '.join(VARIABLES)}\n"
        f"USER {python_root.USER_ID}:{python_root.USER_ID}\n"
        f"ENTRYPOINT {entry}\n"
    )
