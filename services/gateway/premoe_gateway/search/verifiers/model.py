"""Another model as a verifier, by its OpenAI endpoint."""

from __future__ import annotations

import json
import re

import aiohttp

from premoe_gateway.search.verifiers.named import NamedVerifier
from premoe_runtime.formats.errors import InvalidInput, Unavailable

_MOST_BYTES = 1 << 20
"""Of a reply."""
_MARK = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_BEST = 10.0


class Endpoints:
    """Connections to them, kept between searches. Use from one event loop; ``close`` at its end."""

    def __init__(self) -> None:
        self._sessions: dict[NamedVerifier, aiohttp.ClientSession] = {}

    def of(self, named: NamedVerifier) -> aiohttp.ClientSession:
        """The connections to one, opened as they are needed."""
        if named not in self._sessions:
            connector = aiohttp.TCPConnector(limit=named.concurrent)
            timeout = aiohttp.ClientTimeout(total=named.timeout_s)
            self._sessions[named] = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self._sessions[named]

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()


class ModelVerifier:
    """Asks it for a mark from 0 to 10, greedily; the score is a tenth of that."""

    def __init__(
        self, named: NamedVerifier, session: aiohttp.ClientSession, question: str, *, unfinished: bool = False
    ) -> None:
        self._named = named
        self._session = session
        self._question = question
        self._title = "Answer, which may go on" if unfinished else "Answer"
        self.timeout_s = named.timeout_s

    async def score(self, answer: str) -> float:
        shown = f"Question:\n{self._question}\n\n{self._title}:\n{answer}"
        turns = [{"role": "system", "content": self._named.instructions}, {"role": "user", "content": shown}]
        asked = {"model": self._named.model, "messages": turns, "temperature": 0, "max_tokens": 16}
        mark = _MARK.search(_said(await self._post(asked)))
        if mark is None or float(mark[0]) > _BEST:
            raise self._fault("answers with no mark from 0 to 10")
        return float(mark[0]) / _BEST

    async def _post(self, asked: dict[str, object]) -> bytes:
        try:
            key = self._named.key()
            headers = {"authorization": f"Bearer {key}"} if key else {}
            url = f"{self._named.url.rstrip('/')}/chat/completions"
            async with self._session.post(url, json=asked, headers=headers, allow_redirects=False) as response:
                body = await response.content.read(_MOST_BYTES)
                while len(body) < _MOST_BYTES and (more := await response.content.read(_MOST_BYTES - len(body))):
                    body += more
        except (aiohttp.ClientError, OSError, InvalidInput) as error:
            # What went wrong in detail is the operator's to know: addresses and keys are no business of requests.
            raise self._fault("does not answer") from error
        if response.status != 200:
            raise self._fault(f"answers with status {response.status}")
        return body

    def _fault(self, what: str) -> Unavailable:
        return Unavailable(f"verifier {self._named.name} {what}", reason="VERIFIER_UNAVAILABLE")


def _said(body: bytes) -> str:
    """The text of a chat's first choice; empty where there is none."""
    try:
        return str(json.loads(body)["choices"][0]["message"]["content"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
