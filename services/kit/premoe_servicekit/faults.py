"""Faults of a server as its callers should see them: never as a mistake of theirs, and without where things lie."""

from __future__ import annotations

import logging

from premoe_runtime.formats.errors import Conflict, CorruptData, Exhausted, InvalidInput, NotFound, PremoeError

log = logging.getLogger(__name__)


def own_fault(error: PremoeError, message: str = "") -> PremoeError:
    """``error`` from something that the caller did not name, as a fault of the server (gRPC DATA_LOSS, INTERNAL; 5xx).

    What is not there was lost; what cannot be right was made so by us. Other errors are that already.
    """
    kind = type(error)
    if isinstance(error, NotFound):
        kind = CorruptData
    elif isinstance(error, InvalidInput | Conflict):
        kind = PremoeError
    return kind(message or str(error), reason=error.reason)


def storage_fault(what: str, error: PremoeError, hint: str) -> PremoeError:
    """The fault that ``error`` of our own storage is. Its message names ``what``; the place goes into our log.

    ``hint`` says what to do about data that is missing or damaged.
    """
    log.error("%s: %s", what, error)
    why = "cannot be read now: the object store does not answer"
    if isinstance(error, NotFound):
        why = f"is missing in the object store; {hint}"
    elif isinstance(error, CorruptData):
        why = f"is damaged in the object store; {hint}"
    elif isinstance(error, InvalidInput | Conflict):
        why = "cannot be read: the object store refuses; see the log of the service"
    elif isinstance(error, Exhausted):
        why = "cannot be read: no room is left; see the log of the service"
    return own_fault(error, f"{what} {why}")
