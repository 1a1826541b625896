"""Accelerators that people have, and how many of them a number of bytes takes."""

from __future__ import annotations

from dataclasses import dataclass

from premoe_runtime.formats.errors import InvalidInput

RESERVED_BYTES = 1 << 30
"""Of each device, for the driver's context and for what allocators cannot use."""


@dataclass(frozen=True, slots=True)
class Device:
    """``mib``: memory as the driver counts it, in MiB; cards are sold by rounder numbers."""

    name: str
    mib: int

    @property
    def num_bytes(self) -> int:
        return self.mib << 20

    def needed(self, num_bytes: int) -> int:
        """Devices that hold so many bytes between them, by memory alone."""
        return -(-num_bytes // (self.num_bytes - RESERVED_BYTES))


DEVICES: tuple[Device, ...] = (
    Device("T4", 15_360),
    Device("L4", 23_034),
    Device("RTX-3090", 24_576),
    Device("RTX-4090", 24_564),
    Device("RTX-5090", 32_607),
    Device("A100-40GB", 40_960),
    Device("L40S", 46_068),
    Device("Ascend-910B2", 65_536),
    Device("A100-80GB", 81_920),
    Device("H100", 81_559),
    Device("H20", 97_871),
    Device("H200", 143_771),
    Device("B200", 183_359),
    Device("MI300X", 196_592),
)


def device(name: str) -> Device:
    """A device by its name, whatever its letters' case. Raises InvalidInput."""
    wanted = name.strip().lower().replace(" ", "-")
    for one in DEVICES:
        if one.name.lower() == wanted:
            return one
    raise InvalidInput(
        f"device {name[:40]!r} is not known; give --memory, or one of {', '.join(one.name for one in DEVICES)}",
        reason="DEVICE_UNKNOWN",
    )
