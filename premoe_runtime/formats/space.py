"""Where signatures are compared: shifted and stretched, so that what differs within every task counts for less."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from premoe_runtime.formats.arrays import F32
from premoe_runtime.formats.signature import unit


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """Frozen in a pattern set, whose exemplars lie in it.

    centre  f32[D], the mean signature
    axes    f32[D, D], what a signature less the centre is multiplied by
    """

    centre: F32
    axes: F32

    def of(self, signatures: F32) -> F32:
        """Unit vectors f32[..., D] of unit signatures f32[..., D]."""
        return unit(((signatures - self.centre) @ self.axes).astype(np.float32))

    @property
    def problem(self) -> str:
        """Why this is no space; empty where it is one."""
        if self.centre.ndim != 1 or self.axes.shape != 2 * self.centre.shape:
            return f"its space has a centre of {list(self.centre.shape)} and axes of {list(self.axes.shape)}"
        if not (np.isfinite(self.centre).all() and np.isfinite(self.axes).all()):
            return "its space is not finite"
        return ""
