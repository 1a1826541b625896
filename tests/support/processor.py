"""What tests of exactness need to know of this machine."""

from pathlib import Path

INTEL = "GenuineIntel" in Path("/proc/cpuinfo").read_text()
"""Elsewhere MKL's and torch's kernels for matrices of another shape add up in another order."""
