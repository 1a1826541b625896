"""The last words of a container: one JSON line that Kubernetes shows in the pod's status.

The kubelet mounts the file; where it does not, nothing is written unless ``PREMOE_TERMINATION_LOG`` names another.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from premoe_runtime.formats.errors import PremoeError
from premoe_servicekit.errors import one_line

VARIABLE = "PREMOE_TERMINATION_LOG"
KUBERNETES_LOG = Path("/dev/termination-log")
MAX_BYTES = 4096
"""What the kubelet keeps of it."""
_MAX_MESSAGE = 600  # six bytes a character at worst


def failure(error: Exception) -> dict[str, str]:
    """What a failed process says: its UPPER_SNAKE reason (INTERNAL: nobody raised it on purpose) and one sentence."""
    if isinstance(error, PremoeError):
        return {"reason": error.reason, "message": one_line(error)[:_MAX_MESSAGE]}
    return {
        "reason": PremoeError.default_reason,
        "message": f"{type(error).__name__}: {one_line(error)}"[:_MAX_MESSAGE],
    }


def write_last_words(words: Mapping[str, object], environment: Mapping[str, str] = os.environ) -> None:
    """Write ``words`` as one line. A file that cannot be written is passed over: the exit code still speaks."""
    named = environment.get(VARIABLE, "")
    path = Path(named) if named else KUBERNETES_LOG
    if not named and not path.exists():
        return
    with suppress(OSError):
        # A mounted file: it can be written, but not replaced.
        path.write_text(json.dumps(words, ensure_ascii=True) + "\n")
