"""Fields that say how tokens are chosen, the same for every kind of request. Their meaning is vLLM's and OpenAI's."""

from __future__ import annotations

from typing import Annotated, Any

from premoe_servicekit.texts import whole_text
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, WithJsonSchema
from pydantic_core import PydanticCustomError

from premoe_gateway.domain import Sampling
from premoe_gateway.openai.faults import BadParameter
from premoe_runtime.engines.params import MAX_BIASED, MAX_LOGPROBS, MAX_SEED, MAX_STOP_TOKENS

SEEDS = MAX_SEED + 1
UINT32 = 2**32 - 1
MAX_STOPS = 4


def number(value: object) -> object:
    """JSON's truth values are no numbers, nor is text."""
    if isinstance(value, bool | str):
        raise PydanticCustomError("number", "must be a number")
    return value


def _stops(value: object) -> object:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MAX_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise PydanticCustomError("stop", f"must be a string or a list of at most {MAX_STOPS}, none of them empty")
    return [whole_text(stop) for stop in stops]


def _biases(value: object) -> object:
    """Keys are token ids, as text or, where a client writes them so, as numbers in text."""
    if not isinstance(value, dict) or len(value) > MAX_BIASED:
        raise PydanticCustomError("bias", f"must be an object with at most {MAX_BIASED} token ids")
    return tuple((_token_id(token), _bias(bias)) for token, bias in value.items())


def _token_id(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) <= UINT32):
        raise PydanticCustomError("bias", 'must name token ids, such as "42"')
    return int(text)


def _bias(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -100 <= value <= 100:
        raise PydanticCustomError("bias", "must give each token a number in -100 … 100")
    return float(value)


def _end_ids(value: object) -> object:
    if (
        not isinstance(value, list)
        or len(value) > MAX_STOP_TOKENS
        or not all(type(token) is int and 0 <= token <= UINT32 for token in value)
    ):
        raise PydanticCustomError("ends", f"must be a list of at most {MAX_STOP_TOKENS} token ids")
    return value


Int = Annotated[int, BeforeValidator(number)]
Float = Annotated[float, BeforeValidator(number)]
_STOP = {"type": "string", "minLength": 1}
_TOKEN = {"type": "integer", "minimum": 0, "maximum": UINT32}
_STOPS = {"anyOf": [_STOP, {"type": "array", "maxItems": MAX_STOPS, "items": _STOP}]}
_BIASES = {
    "type": "object",
    "maxProperties": MAX_BIASED,
    "propertyNames": {"pattern": "^[0-9]{1,9}$"},
    "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
}
_END_IDS = {"type": "array", "maxItems": MAX_STOP_TOKENS, "items": _TOKEN}


class SamplingFields(BaseModel):
    """What bodies of all kinds have in common. None: as the checkpoint's authors recommend."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    temperature: Float | None = Field(default=None, ge=0, le=2)
    top_p: Float | None = Field(default=None, gt=0, le=1)
    stop: Annotated[tuple[str, ...], BeforeValidator(_stops), WithJsonSchema(_STOPS)] = ()
    seed: Int | None = Field(default=None, ge=-(2**63), lt=SEEDS)
    max_tokens: Int | None = Field(default=None, ge=1, le=UINT32)
    presence_penalty: Float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: Float = Field(default=0.0, ge=-2, le=2)
    logit_bias: Annotated[tuple[tuple[int, float], ...], BeforeValidator(_biases), WithJsonSchema(_BIASES)] = ()
    # Not OpenAI's; other servers have them by these names.
    top_k: Int | None = Field(default=None, ge=-1, le=UINT32)
    """0 and -1 mean off."""
    min_p: Float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: Float | None = Field(default=None, ge=0.001, le=1000)
    min_tokens: Int = Field(default=0, ge=0, le=UINT32)
    ignore_eos: StrictBool = False
    stop_token_ids: Annotated[tuple[int, ...], BeforeValidator(_end_ids), WithJsonSchema(_END_IDS)] = ()

    def sampling(self, max_tokens: int, *, logprobs: int | None, prompt_logprobs: int | None = None) -> Sampling:
        """``max_tokens`` 0: the worker's number. Raises BadParameter for what contradicts itself."""
        if max_tokens and self.min_tokens > max_tokens:
            raise BadParameter(f"min_tokens: must not exceed max_tokens, {max_tokens}", "min_tokens")
        return Sampling(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            stop=self.stop,
            seed=None if self.seed is None else self.seed % SEEDS,
            top_k=None if self.top_k is None else max(0, self.top_k),
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=self.logit_bias,
            min_tokens=self.min_tokens,
            ignore_eos=self.ignore_eos,
            stop_token_ids=self.stop_token_ids,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )


class ChatLikelihoods(BaseModel):
    """How a chat asks for log probabilities."""

    logprobs: StrictBool = False
    top_logprobs: Int = Field(default=0, ge=0, le=MAX_LOGPROBS)

    def asked(self) -> int | None:
        """Likeliest tokens to say beside each; None: say nothing. Raises BadParameter."""
        if self.top_logprobs and not self.logprobs:
            raise BadParameter("top_logprobs: needs logprobs to be true", "top_logprobs")
        return self.top_logprobs if self.logprobs else None


def _count(value: object) -> object:
    return None if value is False else number(value)


class TextLikelihoods(BaseModel):
    """How a completion does, and whether its answer begins with the prompt."""

    logprobs: Annotated[int | None, BeforeValidator(_count)] = Field(default=None, ge=0, le=MAX_LOGPROBS)
    echo: StrictBool = False
