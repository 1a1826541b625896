"""Build the image of a deployable from this machine's Python: an OCI tar, or a folder for an offline `buildah build`.

python tools/build_image.py operator --tar operator.tar
python tools/build_image.py operator --folder operator-image && buildah build -t premoe-operator operator-image
"""

from __future__ import annotations

import os
from pathlib import Path

import click
from rootfs.builder import DEPLOYABLES, Builder
from rootfs.packages import BuildFailed

REPOSITORY = Path(__file__).parents[1]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "premoe" / "images"


@click.command(help=__doc__)
@click.argument("name", type=click.Choice(sorted(DEPLOYABLES)))
@click.option("--tar", type=click.Path(path_type=Path, dir_okay=False), help="Where to write the OCI tar.")
@click.option(
    "--folder", type=click.Path(path_type=Path, exists=False), help="New folder for a Dockerfile and its root."
)
@click.option("--reference", help="Name of the image in the tar; default: localhost/premoe-NAME:dev.")
@click.option("--offline", is_flag=True, help="Take packages from uv's cache only.")
def main(name: str, tar: Path | None, folder: Path | None, reference: str | None, offline: bool) -> None:
    if tar is None and folder is None:
        raise click.UsageError("say --tar, --folder or both")
    builder = Builder(REPOSITORY, CACHE, offline=offline)
    try:
        if tar is not None:
            reference = reference or f"localhost/premoe-{name}:dev"
            digests = builder.images({reference: DEPLOYABLES[name]}, tar)
            click.echo(f"{reference} {digests[reference]}")
        if folder is not None:
            builder.folder(DEPLOYABLES[name], folder)
            click.echo(str(folder))
    except (BuildFailed, OSError) as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
