"""Errors as HTTP answers in OpenAI's shape."""

from __future__ import annotations

import math

from starlette.responses import JSONResponse

from premoe_gateway.access.limits import Limited
from premoe_gateway.openai import answers
from premoe_runtime.formats.errors import PremoeError


def refusal(error: PremoeError) -> JSONResponse:
    """The whole answer: status, body, and when or how to ask again."""
    status = answers.status_of(error)
    headers = {}
    if status in (429, 503):
        headers["retry-after"] = str(math.ceil(error.retry_after_s) if isinstance(error, Limited) else 1)
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(answers.error_body(error), status_code=status, headers=headers)


def unforeseen() -> PremoeError:
    """A fault of ours, of which clients hear no more."""
    return PremoeError("internal error; the gateway's log has the trace")
