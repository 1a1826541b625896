"""Masks of other tools as command lines name them: a file, and what form it has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

if TYPE_CHECKING:
    from premoe_runtime.formats.manifest import Manifest
    from premoe_runtime.offline.masks.read import KeptExperts, MaskFormat

AUTO = "auto"

format_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--format",
    "form",
    type=click.Choice([AUTO, "easy-ep", "vllm-ascend", "reap", "json"]),
    default=AUTO,
    show_default=True,
    help="Form of the mask file.",
)
keep_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--keep", type=click.IntRange(min=1), help="Keep so many of each list, best first.  [default: all that it lists]"
)


def read_mask_file(path: Path, manifest: Manifest, form: str, keep: int | None) -> KeptExperts:
    """The experts that the file keeps of this model. Raises InvalidInput, and OSError where it cannot be read."""
    from premoe_runtime.offline.masks.pattern import shape_of
    from premoe_runtime.offline.masks.read import read_mask

    chosen = None if form == AUTO else cast("MaskFormat", form)
    mask = read_mask(path.read_bytes(), shape_of(manifest), str(path), chosen)
    return mask if keep is None else mask.best(keep, str(path))
