"""The TLS files that flags name, unread: whether they are any good is for `premoe doctor` to say."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class TlsFiles(NamedTuple):
    """PEM files, and the name in peers' certificates where that is not their address."""

    cert: Path
    key: Path
    ca: Path
    server_name: str = ""
