"""What is wrong with a request, by its field."""

from __future__ import annotations

from premoe_runtime.formats.errors import InvalidInput


class BadParameter(InvalidInput):
    """A request body that cannot be honoured; ``param`` names the field."""

    def __init__(self, message: str, param: str, reason: str = "INVALID_PARAMETER") -> None:
        super().__init__(message, reason=reason)
        self.param = param
