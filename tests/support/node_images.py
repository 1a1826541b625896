"""Images of the node's own pods, as OCI tars: the pause program, and CoreDNS."""

from __future__ import annotations

import shutil
from pathlib import Path

from rootfs.oci import Image, ImageConfig, write_images, write_layer

from support.cluster_programs import cluster_program


def program_image(name: str, program: Path, folder: Path, *, user: str = "65532:65532") -> Path:
    """An image of one static program. Returns its tar in ``folder``. Raises OSError."""
    root = folder / "root"
    root.mkdir(parents=True)
    shutil.copy2(program, root / program.name)
    write_layer(root, folder / "layer.tar")
    config = ImageConfig(entrypoint=(f"/{program.name}",), user=user)
    write_images([Image(name, [folder / "layer.tar"], config)], folder / "image.tar")
    return folder / "image.tar"


def pause_image(pause: Path, folder: Path) -> Path:
    """What holds a pod's namespaces."""
    return program_image("localhost/pause:1", pause, folder)


def coredns_image(folder: Path) -> Path:
    """Cluster DNS; it listens on port 53. Raises ClusterMissing."""
    return program_image("localhost/coredns:1", Path(cluster_program("coredns")), folder, user="0:0")
