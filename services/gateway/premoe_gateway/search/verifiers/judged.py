"""Regular expressions and JSON schemas of requests, judged by a process that can be killed (``judge``)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE

from premoe_runtime.formats.errors import InvalidInput, Unavailable

JUDGES = 4
"""Processes at a time, of all searches: some 20 MB each."""
_JUDGE = (sys.executable, "-I", "-m", "premoe_gateway.search.verifiers.judge")


class Judges:
    """Starts them, a few at a time. Use from one event loop."""

    def __init__(self, most: int = JUDGES) -> None:
        self._places = asyncio.Semaphore(most)

    async def fits(self, schema: str, text: str | None, *, is_json: bool) -> bool:
        """Whether a text fits a schema; of no text, true. Cancelling it kills the process.

        Raises InvalidInput (VERIFIER_INVALID): the schema is wrong; Unavailable: it cost more than it may.
        """
        asked = json.dumps({"schema": schema, "text": text, "json": is_json}).encode()
        async with self._places:
            process = await asyncio.create_subprocess_exec(*_JUDGE, stdin=PIPE, stdout=PIPE, stderr=DEVNULL)
            try:
                told, _ = await process.communicate(asked)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode:
            raise Unavailable("judging an answer took more time or memory than it may", reason="VERIFIER_TOO_COSTLY")
        verdict = json.loads(told)
        if "refused" in verdict:
            raise InvalidInput(f"premoe.search.verifier: {verdict['refused']}", reason="VERIFIER_INVALID")
        return bool(verdict["fits"])


class FitVerifier:
    """1 where an answer fits a schema, 0 where it does not."""

    timeout_s = 10.0

    def __init__(self, judges: Judges, schema: str, *, is_json: bool) -> None:
        self._judges = judges
        self._schema = schema
        self._is_json = is_json

    async def check(self) -> None:
        """Raises InvalidInput: what was asked for is wrong; Unavailable: it costs too much."""
        await self._judges.fits(self._schema, None, is_json=self._is_json)

    async def score(self, answer: str) -> float:
        return float(await self._judges.fits(self._schema, answer, is_json=self._is_json))


class SchemaVerifier(FitVerifier):
    """1 where the answer is JSON that the schema allows."""

    def __init__(self, judges: Judges, schema: str) -> None:
        super().__init__(judges, schema, is_json=True)


class PatternVerifier(FitVerifier):
    """1 where the pattern, in the syntax of Rust's ``regex`` (no lookaround, no references back), is found in it."""

    def __init__(self, judges: Judges, pattern: str) -> None:
        super().__init__(judges, json.dumps({"type": "string", "pattern": pattern}), is_json=False)
