"""What the gateway says of itself: its models, its health, its version."""

from __future__ import annotations

from importlib import metadata

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from premoe_gateway.access.keyring import Keyring
from premoe_gateway.openai import answers
from premoe_gateway.service import Gateway
from premoe_runtime.formats.errors import NotFound


async def models(gateway: Gateway, created: int, request: Request) -> Response:
    by_name = {state.model: state for state in reversed(await gateway.serving())}
    data = [answers.model(by_name[name], created) for name in sorted(by_name)]
    return JSONResponse({"object": "list", "data": data})


async def model(gateway: Gateway, created: int, request: Request) -> Response:
    name = request.path_params["name"]
    for state in await gateway.serving():
        if state.model == name:
            return JSONResponse(answers.model(state, created))
    raise NotFound(f"model {name!r} is not served here", reason="MODEL_NOT_FOUND")


async def health(gateway: Gateway, keyring: Keyring | None, request: Request) -> Response:
    """200 while at least one worker serves, else 503."""
    states = gateway.healthy()
    body: answers.Json = {"status": "ok" if states else "no worker", "workers": [state.address for state in states]}
    if keyring is not None:
        body["keys"] = "stale" if keyring.is_stale else "ok"
    return JSONResponse(body, status_code=200 if states else 503)


async def alive(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def version(request: Request) -> Response:
    return JSONResponse({"version": metadata.version("premoe")})


async def openapi(described: answers.Json, request: Request) -> Response:
    return JSONResponse(described)
