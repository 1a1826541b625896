"""What all tiers share."""

from __future__ import annotations

import signal

# A runner started in the background ignores SIGINT, and children would inherit that: their Ctrl-C tests need the default.
signal.signal(signal.SIGINT, signal.default_int_handler)
