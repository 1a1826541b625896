"""`premoe.search`: how a request asks for a search, and what its answer says of it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, StrictBool, WithJsonSchema
from pydantic_core import PydanticCustomError

from premoe_gateway.openai.faults import BadParameter
from premoe_gateway.openai.formats import json_text
from premoe_gateway.openai.sampling import UINT32, Float, Int
from premoe_gateway.openai.words import Text
from premoe_gateway.search.cost import flops
from premoe_gateway.search.executor import Found, Outcome
from premoe_gateway.search.order import (
    Exactly,
    Fitting,
    Judged,
    Matching,
    Number,
    SearchOrder,
    Steps,
    Vote,
    Wanted,
)

Json = dict[str, object]

_MOST_EXPERTS = 16
_MOST_ROUNDS = 16
_LONGEST_PATTERN = 1000
_LONGEST_SCHEMA = 64 << 10
"""Characters."""


class _Object(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ExactBody(_Object):
    """The answer itself."""

    type: Literal["exact"]
    expected: Text


class NumberBody(_Object):
    """Its last number."""

    type: Literal["number"]
    expected: Text = Field(max_length=100, pattern=r"^[-+]?[0-9]+(\.[0-9]+)?$")
    """Text, so that decimals are what they are written as."""


class PatternBody(_Object):
    """What is found in it."""

    type: Literal["regex"]
    pattern: Text = Field(max_length=_LONGEST_PATTERN)


class SchemaBody(_Object):
    """What it is as JSON."""

    type: Literal["json_schema"]
    allowed: dict[str, JsonValue] = Field(alias="schema")


class ModelBody(_Object):
    """A verifier that the operator has named."""

    type: Literal["model"]
    name: Text = Field(max_length=64)


def _experts(value: object) -> object:
    numbers = value if isinstance(value, list) else []
    good = all(type(number) is int and 1 <= number <= UINT32 for number in numbers)
    if not (numbers and good and len(numbers) <= _MOST_EXPERTS and len(set(numbers)) == len(numbers)):
        raise PydanticCustomError("experts", f"must be a list of 1 to {_MOST_EXPERTS} different numbers from 1 on")
    return tuple(numbers)


_EXPERTS = {
    "type": "array",
    "minItems": 1,
    "maxItems": _MOST_EXPERTS,
    "uniqueItems": True,
    "items": {"type": "integer", "minimum": 1, "maximum": UINT32},
}


class StepsBody(_Object):
    """Answers that grow."""

    tokens: Int = Field(ge=16, le=UINT32)
    keep: Int = Field(default=1, ge=1, le=128)


class SearchBody(_Object):
    """What is not given is chosen."""

    active_experts: Annotated[tuple[int, ...], BeforeValidator(_experts), WithJsonSchema(_EXPERTS)] = ()
    rounds: Int = Field(default=2, ge=1, le=_MOST_ROUNDS)
    budget: Int | None = Field(default=None, ge=1, le=UINT32)
    enough: Float | None = Field(default=None, gt=0, le=1)
    vote: Vote = "text"
    verifier: (
        Annotated[ExactBody | NumberBody | PatternBody | SchemaBody | ModelBody, Field(discriminator="type")] | None
    ) = None
    require_verified: StrictBool = False
    steps: StepsBody | None = None


class PremoeBody(_Object):
    """Our own extensions of a request."""

    search: SearchBody | None = None


def search_order(body: SearchBody) -> SearchOrder:
    """Raises BadParameter for what contradicts itself."""
    if body.verifier is None:
        for name, asks in (("enough", body.enough is not None), ("require_verified", body.require_verified)):
            if asks:
                place = f"premoe.search.{name}"
                raise BadParameter(f"{place}: needs a verifier; without one the answers vote", place)
    if body.steps is not None and not isinstance(body.verifier, ModelBody):
        raise BadParameter(
            "premoe.search.steps: needs a verifier of type model; others judge whole answers", "premoe.search.steps"
        )
    certain = body.verifier is not None and not isinstance(body.verifier, ModelBody)
    return SearchOrder(
        body.active_experts,
        body.rounds,
        body.budget,
        1.0 if body.enough is None and certain else body.enough,
        body.vote,
        _wanted(body.verifier),
        body.require_verified,
        None if body.steps is None else Steps(body.steps.tokens, body.steps.keep),
    )


def _wanted(body: ExactBody | NumberBody | PatternBody | SchemaBody | ModelBody | None) -> Wanted | None:
    if isinstance(body, ExactBody):
        return Exactly(body.expected)
    if isinstance(body, NumberBody):
        return Number(body.expected)
    if isinstance(body, PatternBody):
        return Matching(body.pattern)
    if isinstance(body, SchemaBody):
        place = "premoe.search.verifier.schema"
        schema = json_text(body.allowed, place)
        if len(schema) > _LONGEST_SCHEMA:
            raise BadParameter(f"{place}: longer than {_LONGEST_SCHEMA} characters", place)
        return Fitting(schema)
    return None if body is None else Judged(body.name)


def search_record(outcome: Outcome, shown: Sequence[Found]) -> Json:
    """`premoe.search` of an answer. ``index``: that of its choice; null of one that is none."""
    places = {found.number: index for index, found in enumerate(shown)}
    costs = [_flops(outcome, found) for found in outcome.answers]
    answers: list[Json] = []
    for found, votes, cost in sorted(
        zip(outcome.answers, outcome.votes, costs, strict=True), key=lambda each: each[0].number
    ):
        answers.append(
            {
                "index": places.get(found.number),
                "state": _state(found),
                "active_experts": found.experts,
                "round": found.round,
                "score": found.score,
                "votes": votes,
                "completion_tokens": found.tokens,
                "flops": cost,
                "error": None if found.error is None else found.error.reason.lower(),
            }
        )
    return {
        "answers": answers,
        "rounds": outcome.rounds,
        "ended": outcome.ended,
        "verified": shown[0].score is not None,
        "problem": outcome.problem or None,
        "completion_tokens": sum(found.tokens for found in outcome.answers),
        "flops": None if None in costs else sum(cost for cost in costs if cost is not None),
    }


def _state(found: Found) -> str:
    if found.error is not None:
        return "failed"
    if found.finished is not None:
        return "whole"
    return "unfinished" if found.goes_on else "cut"


def _flops(outcome: Outcome, found: Found) -> float | None:
    prompt = found.started.prompt_tokens if found.started is not None else 0
    return flops(outcome.facts, found.experts, prompt + found.tokens)
