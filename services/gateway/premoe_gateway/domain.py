"""The gateway's nouns: what is asked, which pattern runs, and the events of an answer. No HTTP, no gRPC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from premoe_runtime.formats.choices import DecisionKind

FinishReason = Literal["stop", "length", "cancelled", "tool_calls"]


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
    description: str
    parameters: str
    strict: bool


@dataclass(frozen=True, slots=True)
class Tools:
    """Tools on offer; ``required`` says that one must be called, ``name`` which, ``single`` that at most one may be."""

    offered: tuple[Tool, ...] = ()
    required: bool = False
    name: str = ""
    single: bool = False


NO_TOOLS = Tools()


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation. ``tool_calls``: the assistant's; ``tool_call_id``: which of them a tool answers."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


Prompt = str | tuple[int, ...] | tuple[Turn, ...]
"""Raw text, token ids, or a conversation."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen; ``max_tokens`` 0 leaves the number to the worker, ``temperature`` 0 is greedy.

    None: what the checkpoint's authors recommend.
    """

    max_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    top_k: int | None = None
    """0: off."""
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    """Likeliest tokens to say with each token's log probability; None: say none. The same of the prompt's tokens:"""
    prompt_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Recommended:
    """What the checkpoint's authors say of sampling."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """JSON that ``schema`` (JSON itself) allows. ``strict``: refuse keywords that cannot be enforced."""

    schema: str
    strict: bool


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, checked and free of HTTP."""

    model: str
    prompt: Prompt
    sampling: Sampling
    pattern: str = ""
    """Task name, pattern id, "generalist" or "full"; empty: recognise the task."""
    active_experts: int | None = None
    format: AnswerFormat | None = None
    """None: any text."""
    tools: Tools = NO_TOOLS
    priority: int = 0
    """Larger ones step back behind smaller ones."""
    template_arguments: str = ""
    """Of the model's own chat template: a JSON object; empty: none."""
    cache_salt: str = ""
    """Keys and values are used again for the same one only."""
    deny: tuple[str, ...] = ()
    """Tasks whose own experts are masked out."""


@dataclass(frozen=True, slots=True)
class PatternChoice:
    """What was decided, and why."""

    decision: DecisionKind
    pattern_id: str = ""
    task: str = ""
    score: float = 0.0
    reason: str = ""
    weights_id: str = ""
    """Weights that the pattern belongs to; empty: whichever a worker has."""


@dataclass(frozen=True, slots=True)
class Probed:
    """Signatures of a prompt's last user turn: after all that comes before it, and ``alone`` (empty: nothing does);
    ``earlier``: those of the user turns before it, each alone, oldest first. ``weights_id``: what they were made with.
    """

    weights_id: str
    signature: tuple[float, ...]
    alone: tuple[float, ...] = ()
    earlier: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Recognition:
    """A choice and the milliseconds it took; both None where the caller named the pattern."""

    choice: PatternChoice
    probe_ms: float | None = None
    retrieve_ms: float | None = None


@dataclass(frozen=True, slots=True)
class StoredPattern:
    """One member of the live set."""

    pattern_id: str
    task: str
    generalist: bool


@dataclass(frozen=True, slots=True)
class Swap:
    """What had to move before the first token."""

    blobs_loaded: int
    bytes_loaded: int
    milliseconds: float


@dataclass(frozen=True, slots=True)
class Started:
    """First event."""

    choice: PatternChoice
    prompt_tokens: int
    swap: Swap


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """What a token writes (a ``special`` one has a name, and no text in an answer), and how likely it was; None: the
    prompt's first.
    """

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
    """New text, possibly empty while bytes of a character are missing; log probabilities where they are asked for."""

    text: str
    logprobs: tuple[PlaceLogprobs, ...] = ()
    prompt_logprobs: tuple[PlaceLogprobs, ...] = ()
    token_ids: tuple[int, ...] = ()
    """New tokens, where their ids are known."""
    tokens: int = 1
    """How many there are."""


@dataclass(frozen=True, slots=True)
class Called:
    """A whole call of a tool, between deltas."""

    call: ToolCall


@dataclass(frozen=True, slots=True)
class Finished:
    """Last event."""

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    retained_mass: float
    first_token_ms: float
    decode_ms: float
    numbers: str = ""
    """How the weights are stored and what they were computed in; empty where that is the same."""


Event = Started | Delta | Called | Finished


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What a worker said of itself when it was last asked."""

    address: str
    model: str
    weights_id: str
    running: int
    waiting: int
    slots: int
    """Expert slots per layer, on average."""
    layer_slots: tuple[int, ...]
    """Those of every MoE layer; empty when an older worker did not say."""
    allocation: str
    experts: int
    context_length: int
    budget: str
    residents: tuple[frozenset[int], ...] = ()
    """Experts in the slots of every MoE layer."""
    before: tuple[frozenset[int], ...] = ()
    """Those before they changed last; empty until they do while we watch."""
    generation: int = 0
    """Of its tables: grows by one with every swap."""
    device_bytes: int = 0
    """Of its expert slots."""
    total_bytes: int = 0
    """Of all experts of the model."""
    split_problem: str = ""
    """Why its slots do not spread as the live pattern set says; empty when they do."""
    recommended: Recommended = Recommended()
    abilities: frozenset[str] = frozenset()
    """What it may be asked for beyond plain answers."""
    numbers: str = ""
    """How its weights are stored and what they are computed in; empty where that is the same."""
    deny: tuple[str, ...] = ()
    """Tasks whose own experts no request gets."""
    shared_parameters: int = 0
    """Of all but the routed experts; 0 where it does not tell."""
    expert_parameters: int = 0
    """Of one routed expert in every MoE layer together; 0 where it does not tell."""

    @property
    def load(self) -> int:
        """Sequences it has, running or not."""
        return self.running + self.waiting
