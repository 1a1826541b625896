"""The worker's nouns. No gRPC, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from premoe_runtime.engines.base import FinishReason
from premoe_runtime.engines.params import SamplingParams
from premoe_runtime.formats.choices import DecisionKind, OnUnknown

if TYPE_CHECKING:
    # It brings torch, and a wrong budget should be told before that is imported.
    from premoe_runtime.serving.reports import SwapReport


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool. ``arguments``: a JSON object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Tool:
    """What the model may call. ``parameters``: a JSON schema; empty: none was given."""

    name: str
    description: str = ""
    parameters: str = ""
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """``required``: a tool must be called; ``name``: this one; ``single``: at most one call."""

    required: bool = False
    name: str = ""
    single: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation. ``tool_calls``: the assistant's; ``tool_call_id``: which of them a tool answers."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


Prompt = str | tuple[int, ...] | tuple[Turn, ...]
"""Raw text, token ids, or a conversation."""


@dataclass(frozen=True, slots=True)
class PatternChoice:
    """What to run, and why."""

    decision: DecisionKind
    pattern_id: str = ""
    task: str = ""
    score: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """JSON that ``schema`` (JSON itself) allows. ``strict``: refuse keywords that cannot be enforced."""

    schema: str
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. ``choice`` None: the worker recognises the task itself; ``on_unknown`` None: its own policy;
    ``sampling.max_tokens`` 0: its own number.
    """

    prompt: Prompt
    sampling: SamplingParams = field(default_factory=lambda: SamplingParams(max_tokens=0))
    choice: PatternChoice | None = None
    active_experts: int | None = None
    deny: tuple[str, ...] = ()
    """Tasks whose own experts are masked out."""
    on_unknown: OnUnknown | None = None
    model: str = ""
    format: AnswerFormat | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    priority: int = 0
    """Larger ones step back behind smaller ones."""
    template_arguments: str = ""
    """Of the model's own chat template: a JSON object; empty: none."""
    cache_salt: str = ""
    """Keys and values are used again for the same one only."""


@dataclass(frozen=True, slots=True)
class Started:
    """First event of an answer."""

    choice: PatternChoice
    prompt_tokens: int
    swap: SwapReport


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """What a token writes (a ``special`` one has a name, and no text in an answer), and how likely it was; None: the
    prompt's first.
    """

    token_id: int
    text: bytes
    special: bool
    logprob: float | None


@dataclass(frozen=True, slots=True)
class PlaceLogprobs:
    """The token that stands at one place, and the likeliest ones there."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Tokens:
    """A prompt as token ids, with their names in the vocabulary; ``context``: longest prompt plus answer."""

    ids: tuple[int, ...]
    names: tuple[str, ...]
    context: int


@dataclass(frozen=True, slots=True)
class Delta:
    """New tokens and the text that is certain by now; log probabilities where they were asked for."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[PlaceLogprobs, ...] = ()
    prompt_logprobs: tuple[PlaceLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Called:
    """A whole call of a tool, between deltas."""

    call: ToolCall


@dataclass(frozen=True, slots=True)
class Finished:
    """Last event."""

    reason: FinishReason | Literal["tool_calls"]
    prompt_tokens: int
    completion_tokens: int
    retained_mass: float
    first_token_ms: float
    decode_ms: float
    numbers: str = ""
    """How the weights are stored and what they were computed in; empty where that is the same."""


Event = Started | Delta | Called | Finished
