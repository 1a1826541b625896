"""The full model for commands that measure it, loaded behind a progress bar."""

from __future__ import annotations

from typing import TYPE_CHECKING

from premoe_local.console import progress

if TYPE_CHECKING:
    from premoe_runtime.engines.hf.model import SlotModel
    from premoe_runtime.packs.reader import PackReader


def full_model(reader: PackReader, *, threads: int | None, device: str, dtype: str) -> SlotModel:
    """A slot model with every expert resident; see ``load_full_model`` for the settings and what it raises."""
    with progress("loading the model", total=reader.manifest().num_layers) as bar:
        # Torch takes seconds to import, and those with no need of it do not wait for it.
        from premoe_runtime.offline.profile.measure import load_full_model, make_full

        model = load_full_model(reader, threads=threads, device=device, dtype=dtype)
        make_full(model, bar.advance)
    return model
