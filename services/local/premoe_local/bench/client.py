"""The HTTP side: one streamed request to an OpenAI endpoint, timed. Every way to fail becomes an outcome's code."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from premoe_local.bench.outcome import OK, Outcome
from premoe_local.bench.schedule import Call
from premoe_local.bench.stream import AnswerReader, CallFailed, shortened
from premoe_runtime.formats.errors import InvalidInput, NotFound, Unavailable

_IDLE_S = 2.0
"""Idle connections are closed before servers close them (uvicorn after 5 s): no request meets a dying one."""
_ERROR_BYTES = 4096
_REFUSALS = (aiohttp.ClientError, TimeoutError, OSError, ValueError)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where requests go, and what all of them have in common."""

    base_url: str
    """With or without ``/v1`` at its end."""
    api_key: str | None = None
    timeout_s: float = 600.0
    """For a whole answer."""

    def url(self, path: str) -> str:
        return f"{self.base_url.rstrip('/').removesuffix('/v1')}/v1/{path}"


class Client:
    """An open session; `connected` makes one."""

    def __init__(self, session: aiohttp.ClientSession, endpoint: Endpoint) -> None:
        self._session = session
        self._endpoint = endpoint

    async def model_name(self, wanted: str | None) -> str:
        """The model to ask for. Raises Unavailable or InvalidInput where no OpenAI endpoint answers.

        Raises NotFound when it does not serve ``wanted``, InvalidInput when it serves several and none is wanted.
        """
        names = await self._models()
        if wanted is not None and wanted not in names:
            served = ", ".join(names) or "none"
            raise NotFound(f"{self._endpoint.base_url} does not serve {wanted!r}; it serves: {served}")
        if wanted is None and len(names) != 1:
            raise InvalidInput(
                f"{self._endpoint.base_url} serves {', '.join(names) or 'no model'}; choose with --model"
            )
        return wanted or names[0]

    async def _models(self) -> list[str]:
        url = self._endpoint.url("models")
        try:
            async with self._session.get(url, allow_redirects=False) as response:
                await _refuse(response)
                names = [entry["id"] for entry in (await response.json(content_type=None))["data"]]
        except CallFailed as error:
            hint = "; set OPENAI_API_KEY" if error.code in ("401", "403") else ""
            raise InvalidInput(f"{url} answers {error.code}, so this is no OpenAI endpoint for us{hint}") from error
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise InvalidInput(f"{self._endpoint.base_url}: is no URL such as http://127.0.0.1:8000") from error
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InvalidInput(f"{url} lists no models, so this is no OpenAI endpoint") from error
        except _REFUSALS as error:
            failure = _failure(error)
            raise Unavailable(f"{self._endpoint.base_url}: {failure.detail}") from error
        return [str(name) for name in names]

    async def send(self, body: Mapping[str, Any], call: Call, due: float, clock: Callable[[], float]) -> Outcome:
        """Send one call and read its answer to the end. Raises nothing but cancellation."""
        reader, sent = AnswerReader(), clock()
        code, detail = OK, ""
        messages = [{"role": message.role, "content": message.content} for message in call.messages]
        try:
            async with self._session.post(
                self._endpoint.url("chat/completions"), json={**body, "messages": messages}, allow_redirects=False
            ) as response:
                await _refuse(response)
                _check_stream(response)
                async for data in response.content.iter_any():
                    reader.feed(data, clock())
                reader.end()
        except (CallFailed, *_REFUSALS) as error:
            failure = error if isinstance(error, CallFailed) else _failure(error)
            code, detail = failure.code, failure.detail
        moments = tuple(reader.moments)
        return Outcome(
            call.task, due, sent, clock(), moments, reader.prompt_tokens, reader.completion_tokens, code, detail
        )


@asynccontextmanager
async def connected(endpoint: Endpoint) -> AsyncIterator[Client]:
    """A client with as many connections as requests are open. Proxy variables are not followed."""
    # Compressed events would come in clumps.
    headers = {"accept-encoding": "identity"}
    if endpoint.api_key:
        headers["authorization"] = f"Bearer {endpoint.api_key}"
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_S)
    timeout = aiohttp.ClientTimeout(total=endpoint.timeout_s)
    async with aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout) as session:
        yield Client(session, endpoint)


def clock_from_now() -> Callable[[], float]:
    """Seconds since this call."""
    begin = time.perf_counter()
    return lambda: time.perf_counter() - begin


async def _refuse(response: aiohttp.ClientResponse) -> None:
    """Raise CallFailed for any status but 200, with what the body says."""
    if response.status != 200:
        text = (await response.content.read(_ERROR_BYTES)).decode(errors="replace")
        raise CallFailed(str(response.status), shortened(text) or response.reason or "")


def _check_stream(response: aiohttp.ClientResponse) -> None:
    if response.content_type != "text/event-stream":
        raise CallFailed("no_stream", f"the answer is {response.content_type}, not a stream of events")


def _failure(error: Exception) -> CallFailed:
    """A word and a line for what the HTTP client raises."""
    if isinstance(error, asyncio.TimeoutError):
        return CallFailed("timeout", "no whole answer in time")
    if isinstance(error, aiohttp.ClientConnectorError):
        refused = isinstance(error.os_error, ConnectionRefusedError)
        return CallFailed("refused" if refused else "connection", shortened(str(error)))
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError | ConnectionResetError):
        return CallFailed("cut", "the connection closed before the answer ended")
    if isinstance(error, aiohttp.ClientResponseError):
        return CallFailed("no_http", shortened(f"the answer is no HTTP: {error.message}"))
    return CallFailed("connection", shortened(str(error)) or type(error).__name__)
