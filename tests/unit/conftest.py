"""Tests hold on any machine: no example of a property has a deadline, and products have the same bits everywhere."""

import os

from hypothesis import settings
from support.processor import INTEL

settings.register_profile("any machine", settings(deadline=None))
settings.load_profile("any machine")

# On processors other than Intel's MKL chooses among kernels by where matrices lie in memory, unless it is asked not to.
if not INTEL:
    os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")
