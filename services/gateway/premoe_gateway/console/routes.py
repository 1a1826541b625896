"""The console over HTTP: a static page under a strict policy, and two documents that it asks for again and again."""

from __future__ import annotations

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from premoe_gateway.console.held import Body, Held
from premoe_gateway.console.patterns import Patterns
from premoe_gateway.console.residency import residency
from premoe_gateway.domain import WorkerState
from premoe_gateway.openai.faults import BadParameter
from premoe_gateway.service import Gateway
from premoe_runtime.formats.errors import NotFound

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {"cache-control": "no-cache", "x-content-type-options": "nosniff"}
_PAGE_HEADERS = {
    **_HEADERS,
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
}
_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


class Console:
    """The page and its documents over one gateway, whose workers are asked for their state every ``poll_s`` seconds.

    A document is made from what the gateway knows, once in that time: pages cost workers nothing.
    """

    def __init__(self, gateway: Gateway, poll_s: float) -> None:
        self._gateway = gateway
        self._poll_s = poll_s
        self._files = _files()
        self._residency = Held(self._read_residency, poll_s)
        self._patterns: dict[str, Held] = {}

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/", self._page, methods=["GET"]),
            Route("/console/{file}", self._page, methods=["GET"]),
            Route("/premoe/v1/residency", self._show_residency, methods=["GET"]),
            Route("/premoe/v1/patterns", self._show_patterns, methods=["GET"]),
        ]

    async def _page(self, request: Request) -> Response:
        name = request.path_params.get("file", "index.html")
        if name not in self._files:
            raise NotFound(f"the console has no file {name!r}", reason="NO_SUCH_PATH")
        return _answer(request, self._files[name], _PAGE_HEADERS)

    async def _show_residency(self, request: Request) -> Response:
        return _answer(request, await self._residency.get(), _HEADERS)

    async def _show_patterns(self, request: Request) -> Response:
        model = request.query_params.get("model", "")
        if not model:
            raise BadParameter("say which model's: ?model=NAME", param="model")
        self._state_of(model)
        if model not in self._patterns:
            self._patterns[model] = self._hold_patterns(model)
        return _answer(request, await self._patterns[model].get(), _HEADERS)

    async def _read_residency(self) -> dict[str, object]:
        return residency(self._gateway.known(), self._poll_s)

    def _hold_patterns(self, model: str) -> Held:
        patterns = Patterns(self._gateway)

        async def read() -> dict[str, object]:
            return await patterns.document(self._state_of(model))

        return Held(read, self._poll_s)

    def _state_of(self, model: str) -> WorkerState:
        """Of its first worker. Nobody is asked for it: a wrong name must cost workers nothing."""
        for state in self._gateway.healthy():
            if state.model == model:
                return state
        raise NotFound(f"model {model!r} is not served here", reason="MODEL_NOT_FOUND")


def _files() -> dict[str, Body]:
    """The page's files by name."""
    found = (each for each in files("premoe_gateway.console").joinpath("page").iterdir() if each.is_file())
    return {each.name: Body(each.read_bytes(), _MEDIA_TYPES[each.name.rpartition(".")[2]]) for each in found}


def _answer(request: Request, body: Body, headers: dict[str, str]) -> Response:
    headers = {**headers, "etag": body.etag}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if body.etag in known:
        return Response(status_code=304, headers=headers)
    return Response(body.content, media_type=body.media_type, headers=headers)
