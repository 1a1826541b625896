"""/tokenize and /detokenize: what a model makes of text, and the other way round."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from premoe_gateway.http.bodies import parsed
from premoe_gateway.openai.requests import validate
from premoe_gateway.openai.tokens import DetokenizeBody, parse_tokenize, tokens
from premoe_gateway.service import Gateway

Body = Callable[[Request], Awaitable[bytes]]


def token_routes(gateway: Gateway, body: Body) -> list[Route]:
    return [
        Route("/tokenize", partial(_tokenize, gateway, body), methods=["POST"]),
        Route("/detokenize", partial(_detokenize, gateway, body), methods=["POST"]),
    ]


async def _tokenize(gateway: Gateway, body: Body, request: Request) -> Response:
    order = await parsed(parse_tokenize, await body(request))
    ask = order.ask if order.ask.model else replace(order.ask, model=await gateway.only_model())
    found = await gateway.tokenize(ask, plain=order.plain)
    return JSONResponse(tokens(found, names=order.names))


async def _detokenize(gateway: Gateway, body: Body, request: Request) -> Response:
    asked = await parsed(partial(validate, DetokenizeBody), await body(request))
    return JSONResponse({"prompt": await gateway.detokenize(asked.model or await gateway.only_model(), asked.tokens)})
