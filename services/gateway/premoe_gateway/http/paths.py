"""Which paths are open: the one place that says what needs no API key. Whatever is not here needs one."""

from __future__ import annotations

PROBES = frozenset({"/health", "/healthz", "/ready"})
"""What machines ask every few seconds: neither traced nor logged."""
OPEN = PROBES | {"/version", "/openapi.json"}
"""They tell what every gateway of this version would, and whether this one serves."""
