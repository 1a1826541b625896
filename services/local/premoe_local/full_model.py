"""The model of commands that measure it: in memory as a whole, behind a progress bar, or layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from premoe_local.console import note, parse_bytes, progress

if TYPE_CHECKING:
    from premoe_runtime.engines.hf.model import SlotModel
    from premoe_runtime.offline.profile.room import Purpose
    from premoe_runtime.packs.reader import PackReader


def memory_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--memory`` (bytes, or None) and ``--spool`` (a path, or None)."""
    spool = click.option(
        "--spool",
        type=click.Path(path_type=Path),
        help="Folder for the layers' inputs meanwhile, layer by layer.  "
        "[default: premoe/spool in the user's cache folder]",
    )
    memory = click.option(
        "--memory",
        callback=lambda _context, _option, value: None if value is None else parse_bytes(value),
        help="Memory that this may take, for example 8GiB: a larger model is read layer by layer.  "
        "[default: what is free]",
    )
    return memory(spool(command))


def model_to_measure(
    reader: PackReader,
    *,
    memory: int | None,
    threads: int | None,
    device: str,
    dtype: str,
    purpose: Purpose,
    scores: Sequence[str] = (),
    quiet: bool = False,
) -> SlotModel:
    """A slot model with every expert resident, or layer by layer where that does not fit into ``memory``.

    ``quiet``: nothing is said of the way.

    See ``choose_way`` and ``load_full_model`` for the settings and what they raise.
    """
    # Torch takes seconds to import, and those with no need of it do not wait for it.
    from premoe_runtime.offline.profile.measure import load_blocks, load_full_model, make_full
    from premoe_runtime.offline.profile.room import choose_way

    way = choose_way(reader, memory=memory, device=device, dtype=dtype, scores=scores, purpose=purpose)
    if (way.by_layers or memory is not None) and not quiet:
        note(f"note: {way.why}")
    if way.by_layers:
        return load_blocks(reader, threads=threads, device=device, dtype=dtype)
    with progress("loading the model", total=reader.manifest().num_layers) as bar:
        model = load_full_model(reader, threads=threads, device=device, dtype=dtype)
        make_full(model, bar.advance)
    return model
