"""The exception tree: one class per way a request can fail, whatever the process.

    PremoeError
    ├── InvalidInput      the caller must change something           exit 2, INVALID_ARGUMENT, HTTP 400
    ├── NotFound          a named thing does not exist               exit 3, NOT_FOUND, HTTP 404
    ├── Conflict          it exists and differs, or state forbids it exit 4, FAILED_PRECONDITION, HTTP 409
    ├── CorruptData       bytes do not match their digest or format  exit 5, DATA_LOSS, HTTP 500
    ├── Unavailable       a dependency is down; retry may help       exit 6, UNAVAILABLE, HTTP 503
    ├── Exhausted         no room: disk, memory, slots, queue        exit 7, RESOURCE_EXHAUSTED, HTTP 429/507
    └── Forbidden         the caller's role may not do this          exit 8, PERMISSION_DENIED, HTTP 500

Every message is one sentence that says what is wrong, where, and what to do. ``reason`` is the
UPPER_SNAKE reason of ``google.rpc.ErrorInfo`` (domain ``premoe.dev``).
"""

from __future__ import annotations


class PremoeError(Exception):
    """Base of every error PreMoE raises on purpose."""

    exit_code = 1
    default_reason = "INTERNAL"

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason or self.default_reason


class InvalidInput(PremoeError):
    """A file, flag, field or request that can never work as given."""

    exit_code = 2
    default_reason = "INVALID_INPUT"


class NotFound(PremoeError):
    """A model, pattern, set, task, file or object that does not exist."""

    exit_code = 3
    default_reason = "NOT_FOUND"


class Conflict(PremoeError):
    """The thing exists and differs, or the present state forbids the request."""

    exit_code = 4
    default_reason = "CONFLICT"


class CorruptData(PremoeError):
    """Bytes that do not match their digest, length or format."""

    exit_code = 5
    default_reason = "CORRUPT_DATA"


class Unavailable(PremoeError):
    """A dependency did not answer; the same request may work later."""

    exit_code = 6
    default_reason = "UNAVAILABLE"


class Exhausted(PremoeError):
    """No room left: disk, memory, slots or queue."""

    exit_code = 7
    default_reason = "EXHAUSTED"


class Forbidden(PremoeError):
    """Another process may do this, the one that asks may not."""

    exit_code = 8
    default_reason = "FORBIDDEN"
