"""Folders as layers of OCI images, in one tar that `ctr images import` and `skopeo` read.

Equal input gives equal bytes: entries are sorted, owned by root, dated 1970, and no two are hard links of each other.
Source: the OCI image layout, manifest and configuration specifications, version 1.0.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """How a container of the image starts."""

    entrypoint: Sequence[str]
    user: str = "65532:65532"
    """Numeric, so that a kubelet can check runAsNonRoot."""
    environment: Sequence[str] = ()
    working_folder: str = "/"
    architecture: str = "amd64"


@dataclass(frozen=True, slots=True)
class Image:
    """An image of layer tars, the lowest first."""

    name: str
    """The whole reference, for example ``localhost/premoe-operator:1``."""
    layers: Sequence[Path]
    config: ImageConfig


@dataclass(frozen=True, slots=True)
class Blob:
    """A content of the image: what the manifest says about it."""

    media_type: str
    digest: str
    size: int

    def descriptor(self) -> dict[str, object]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}

    @property
    def path(self) -> str:
        """Its place in the layout."""
        return "blobs/" + self.digest.replace(":", "/")


def write_layer(folder: Path, target: Path) -> Blob:
    """Write ``folder`` as a layer's tar to ``target``. Raises OSError."""
    with _replacing(target) as out, tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in _walk(folder):
            _add(tar, path, path.relative_to(folder).as_posix())
    return describe(target, LAYER_TYPE)


def write_images(images: Sequence[Image], target: Path) -> list[str]:
    """Write images to ``target``, shared layers once. Returns the digests of their manifests. Raises OSError."""
    layers = {
        path: describe(path, LAYER_TYPE) for path in dict.fromkeys(path for image in images for path in image.layers)
    }
    built = [_manifest(image, [layers[path] for path in image.layers]) for image in images]
    documents = {_blob(CONFIG_TYPE, content).path: content for contents in built for content in contents}
    with _replacing(target) as out, tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        _put(tar, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        entries = [_entry_of(image, manifest) for image, (manifest, _) in zip(images, built, strict=True)]
        _put(tar, "index.json", _json({"schemaVersion": 2, "manifests": entries}))
        for name, content in documents.items():
            _put(tar, name, content)
        for name, path in {blob.path: path for path, blob in layers.items()}.items():
            with path.open("rb") as source:
                tar.addfile(_entry(name, path.stat().st_size), source)
    return [_blob(MANIFEST_TYPE, manifest).digest for manifest, _ in built]


def describe(path: Path, media_type: str) -> Blob:
    """Digest and size of a file. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as source:
        while chunk := source.read(CHUNK_BYTES):
            digest.update(chunk)
    return Blob(media_type, f"sha256:{digest.hexdigest()}", path.stat().st_size)


def _manifest(image: Image, layers: Sequence[Blob]) -> tuple[bytes, bytes]:
    """The manifest and the configuration of an image."""
    configuration = _config(image.config, [layer.digest for layer in layers])
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": _blob(CONFIG_TYPE, configuration).descriptor(),
        "layers": [layer.descriptor() for layer in layers],
    }
    return _json(manifest), configuration


def _entry_of(image: Image, manifest: bytes) -> dict[str, object]:
    """The image's line in the index."""
    return {
        **_blob(MANIFEST_TYPE, manifest).descriptor(),
        "platform": {"architecture": image.config.architecture, "os": "linux"},
        "annotations": {
            # The first is what containerd names the image, the second what other tools look for.
            "io.containerd.image.name": image.name,
            "org.opencontainers.image.ref.name": image.name.rpartition(":")[2],
        },
    }


def _config(config: ImageConfig, layers: Sequence[str]) -> bytes:
    return _json(
        {
            "architecture": config.architecture,
            "os": "linux",
            "config": {
                "Entrypoint": list(config.entrypoint),
                "Env": list(config.environment),
                "User": config.user,
                "WorkingDir": config.working_folder,
            },
            "rootfs": {"type": "layers", "diff_ids": list(layers)},
        }
    )


def _blob(media_type: str, content: bytes) -> Blob:
    return Blob(media_type, f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    status = path.lstat()
    entry = _entry(name, 0, stat.S_IMODE(status.st_mode))
    if stat.S_ISLNK(status.st_mode):
        entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(path)
        tar.addfile(entry)
    elif stat.S_ISDIR(status.st_mode):
        entry.type = tarfile.DIRTYPE
        tar.addfile(entry)
    else:
        entry.size = status.st_size
        with path.open("rb") as source:
            tar.addfile(entry, source)


def _put(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    tar.addfile(_entry(name, len(content)), io.BytesIO(content))


def _entry(name: str, size: int, mode: int = 0o644) -> tarfile.TarInfo:
    """An entry owned by root and dated 1970: `TarInfo`'s defaults."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, mode
    return entry


@contextmanager
def _replacing(target: Path) -> Iterator[IO[bytes]]:
    """A temporary file that takes ``target``'s place when the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
