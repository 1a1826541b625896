"""Torch devices, checked before anything is loaded onto them."""

from __future__ import annotations

import torch

from premoe_runtime.formats.errors import InvalidInput


def device_kind(device: str) -> str:
    """``"cpu"`` or ``"cuda"`` …. Raises InvalidInput (DEVICE_INVALID) for a device that holds no data here."""
    try:
        kind = torch.empty(0, device=device).device.type
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # Torch lists all that it knows in the lines behind the first.
        raise InvalidInput(
            f"device {device!r} cannot be used here: {str(error).splitlines()[0]}", reason="DEVICE_INVALID"
        ) from error
    if kind == "meta":
        raise InvalidInput("device 'meta' holds no data; give cpu or cuda", reason="DEVICE_INVALID")
    return kind
