"""The engine port: commands in, reports out, all of them values that may cross a process.

The engine owns batching and the KV cache, and the slots with their tables. It does not decide which patterns may share
a batch nor what to evict: it runs the sequences it is given and carries out commands between two steps, in the order in
which they were posted. Both the transformers engine and a vLLM plug-in fit behind this port.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from premoe_runtime.engines.params import SamplingParams
from premoe_runtime.formats.arrays import Mask
from premoe_runtime.formats.choices import Semantics
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.residency.copier import Copied, Copy
from premoe_runtime.residency.ledger import Placement

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What an engine can run. ``context``: longest prompt plus answer, in tokens; ``vocabulary``: number of token ids;
    ``top_k``: most experts a token activates.
    """

    context: int
    vocabulary: int
    top_k: int

    def check(self, token_ids: Sequence[int], active: int, sampling: SamplingParams) -> None:
        """Raise InvalidInput for a request that can never run."""
        sampling.check(self.vocabulary)
        if not token_ids:
            raise InvalidInput("the prompt is empty; send at least one token", reason="PROMPT_EMPTY")
        if len(token_ids) >= self.context:
            raise InvalidInput(
                f"this model's maximum context length is {self.context} tokens, at least one of them for the answer, "
                f"but the prompt has {len(token_ids)}; shorten the prompt",
                reason="CONTEXT_LENGTH_EXCEEDED",
            )
        if not 0 <= min(token_ids) <= max(token_ids) < self.vocabulary:
            raise InvalidInput(
                f"the prompt holds token ids outside 0 … {self.vocabulary - 1}", reason="TOKEN_ID_INVALID"
            )
        if not 1 <= active <= self.top_k:
            raise InvalidInput(
                f"{active} active experts asked for, but the model activates 1 to {self.top_k}",
                reason="ACTIVE_EXPERTS_INVALID",
            )


@dataclass(frozen=True, slots=True)
class SequenceTimings:
    """When a sequence reached what: Unix time in ns, 0 for what never happened.

    Prefill lasts from ``started_ns`` to ``first_token_ns``, decode from there to ``finished_ns``.
    """

    submitted_ns: int
    started_ns: int
    first_token_ns: int
    finished_ns: int


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Of one place: natural logarithms of the model's own distribution, before biases, penalties and temperature.

    ``logprob``: of the token that stands there. ``top``: (id, logarithm) of the likeliest, likeliest first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """New output of one sequence; ``finish`` is set on the last event only, or ``error`` if it failed.

    ``token_ids`` include the end token; ``text`` does not, and stops before a stop string. ``logprobs``: of these
    tokens, where asked for. ``prompt_logprobs``, on the first event with a token: of the prompt's, from its second on.
    ``retained_mass`` (last event): mean over tokens and layers of the full router's probability mass on
    resident experts, 0 to 1; None when no step ran. ``timings`` (last event): for spans and metrics.
    """

    token_ids: tuple[int, ...] = ()
    text: str = ""
    finish: FinishReason | None = None
    retained_mass: float | None = None
    error: Exception | None = None
    timings: SequenceTimings | None = None
    logprobs: tuple[Logprobs, ...] = ()
    prompt_logprobs: tuple[Logprobs, ...] = ()

    @property
    def last(self) -> bool:
        return self.finish is not None or self.error is not None


# Commands.


@dataclass(frozen=True, slots=True)
class Submit:
    """Run a request as one sequence. One that can never run, or whose id is in use, gets one event with the error.

    ``pattern_row`` indexes the mask table; its experts were published before and stay so until the sequence ends or is
    paused. ``active`` experts are used per token (at most the model's top-k). ``kv_key`` names everything but the
    tokens that its keys and values depend on; empty: they may not be shared. ``grammar``: what the answer must match,
    in llguidance's form and checked before (``engines.grammar_check``); empty: anything. ``priority``: of those that
    wait for room the smallest comes first; nobody who runs makes room for it.
    """

    request_id: str
    token_ids: tuple[int, ...]
    pattern_row: int
    active: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    kv_key: str = ""
    grammar: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Cancel:
    """End these sequences at the next boundary and free what they hold; unknown ids are passed over."""

    request_ids: frozenset[str]


@dataclass(frozen=True, slots=True)
class Pause:
    """Leave these sequences out of steps from the next boundary on; their KV is kept, or computed again later."""

    request_ids: frozenset[str]


@dataclass(frozen=True, slots=True)
class Resume:
    """Let paused sequences run again."""

    request_ids: frozenset[str]


@dataclass(frozen=True, slots=True)
class Retire:
    """Take experts out of the tables. Acknowledged by the report of the copy into their slots."""

    experts: tuple[ExpertId, ...]


@dataclass(frozen=True, slots=True)
class Load:
    """Copy in the background, once all commands before it were carried out; answered by ``Loaded``."""

    copy: Copy


@dataclass(frozen=True, slots=True)
class StopLoad:
    """End the copy under way after the blob at hand. ``Loaded`` says how far it came."""


@dataclass(frozen=True, slots=True)
class MaskRow:
    """``kept``: bool[L, E]."""

    row: int
    kept: Mask
    semantics: Semantics


@dataclass(frozen=True, slots=True)
class Publish:
    """Enter experts and a mask row into the tables; answered by ``Published``."""

    placements: tuple[Placement, ...]
    row: MaskRow | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """Check every resident byte; answered by ``Checked``."""


Command = Submit | Cancel | Pause | Resume | Retire | Load | StopLoad | Publish | Check


# Reports.


@dataclass(frozen=True, slots=True)
class StepReport:
    """After every step, and whenever a sequence ended: counters since start, what runs now, and new output.

    ``kv_used``: share of the KV rows that sequences hold, 0 to 1. ``compiled``: sequences that wait for their grammar
    no longer, since the last report.
    """

    steps: int = 0
    running: int = 0
    waiting: int = 0
    kv_used: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    events: tuple[tuple[str, TokenEvent], ...] = ()
    compiled: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A ``Load`` is over. ``retired_ns``: when the tables no longer named its slots."""

    copied: Copied
    retired_ns: int


@dataclass(frozen=True, slots=True)
class Published:
    """A ``Publish`` is in force from the next step on."""

    at_ns: int


@dataclass(frozen=True, slots=True)
class Checked:
    """``error``: CorruptData when tables or bytes are wrong."""

    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """The engine's last report. ``error``: why it ended, unless it was closed."""

    error: BaseException | None = None


Report = StepReport | Loaded | Published | Checked | Ended


class Engine(Protocol):
    """An engine runs beside its owner, in a thread or a process of its own."""

    @property
    def limits(self) -> RequestLimits:
        """What requests may be. Whoever takes them in checks them once; the engine refuses the rest."""
        ...

    def start(self, report: Callable[[Report], None]) -> None:
        """Begin to run. ``report`` is called from one thread, in order, and must not block nor raise."""
        ...

    def post(self, command: Command) -> None:
        """Hand over a command; any thread, never blocks. Without effect once the engine has ended."""
        ...

    def close(self) -> None:
        """Cancel everything and end; bounded in time. Any number of times."""
        ...
