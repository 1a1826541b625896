"""Which paths are open: the one place that says what needs no API key. Whatever is not here needs one."""

from __future__ import annotations

PROBES = frozenset({"/health", "/healthz", "/ready"})
"""What machines ask every few seconds."""
OPEN = PROBES | {"/version", "/openapi.json", "/docs"}
"""They tell what every gateway of this version would, and whether this one serves."""
_PAGE, _PAGE_FILES, _PAGE_DATA = "/", "/console/", "/premoe/"


def is_open(path: str, *, console: bool) -> bool:
    """Whether it needs no API key. The page of the ``console`` asks people for theirs, which its data needs."""
    return path in OPEN or (console and (path == _PAGE or path.startswith(_PAGE_FILES)))


def is_quiet(path: str) -> bool:
    """Whether it is not traced, nor logged unless for want of a key: a probe, or what the console asks every second."""
    return path in PROBES or path == _PAGE or path.startswith((_PAGE_FILES, _PAGE_DATA))
