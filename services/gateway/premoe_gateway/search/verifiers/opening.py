"""The verifier that a search asks for."""

from __future__ import annotations

import asyncio

from premoe_gateway.search.order import Exactly, Fitting, Judged, Matching, Number, Wanted
from premoe_gateway.search.verifiers.base import Verifier
from premoe_gateway.search.verifiers.exact import ExactVerifier, NumberVerifier
from premoe_gateway.search.verifiers.judged import FitVerifier, Judges, PatternVerifier, SchemaVerifier
from premoe_gateway.search.verifiers.model import Endpoints, ModelVerifier
from premoe_gateway.search.verifiers.named import NamedVerifiers
from premoe_runtime.formats.errors import InvalidInput, Unavailable


class Verifiers:
    """Makes them; use from one event loop, and ``close`` at its end."""

    def __init__(self, named: NamedVerifiers) -> None:
        self._named = named
        self._judges = Judges()
        self._endpoints = Endpoints()

    async def of(self, wanted: Wanted | None, question: str, *, unfinished: bool = False) -> Verifier | None:
        """Ready to judge answers to ``question``, whole or ``unfinished``; None where the answers vote.

        Raises InvalidInput (VERIFIER_INVALID): pattern or schema is wrong; NotFound; Unavailable: it takes too long to
        look at them.
        """
        if isinstance(wanted, Exactly):
            return ExactVerifier(wanted.expected)
        if isinstance(wanted, Number):
            return NumberVerifier(wanted.expected)
        if isinstance(wanted, Judged):
            named = self._named.of(wanted.name)
            return ModelVerifier(named, self._endpoints.of(named), question, unfinished=unfinished)
        if isinstance(wanted, Matching):
            return await _checked(PatternVerifier(self._judges, wanted.pattern))
        if isinstance(wanted, Fitting):
            return await _checked(SchemaVerifier(self._judges, wanted.schema))
        return None

    async def close(self) -> None:
        await self._endpoints.close()


async def _checked(verifier: FitVerifier) -> Verifier:
    try:
        async with asyncio.timeout(verifier.timeout_s):
            await verifier.check()
    except TimeoutError:
        raise Unavailable(
            "premoe.search.verifier: nobody looked at it in time", reason="VERIFIER_UNAVAILABLE"
        ) from None
    except Unavailable as error:
        raise InvalidInput(f"premoe.search.verifier: {error}", reason="VERIFIER_INVALID") from None
    return verifier
