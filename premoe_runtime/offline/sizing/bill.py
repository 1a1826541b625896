"""What fits into a memory size: pure arithmetic over the byte counts of a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from premoe_runtime.formats.allocation import Splits, even_slots
from premoe_runtime.formats.budget import DEFAULT_SPARE_SLOTS, Budget, usual_budgets
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.offline.sizing.shape import Shape
from premoe_runtime.residency.plan import whole_host_bytes

DEFAULT_CONTEXT = 4096
DEFAULT_ROWS = 8
STEP_TOKENS = 256
"""Prompt tokens that one step takes at most, beside one token of every running sequence."""
PROCESS_BYTES = 850 << 20
"""Main memory of a worker before it has a model: torch, transformers, gRPC (measured, torch 2.13 on Linux)."""


BOUNDLESS = 1 << 62
"""Memory that holds any model."""


@dataclass(frozen=True, slots=True)
class SizeRequest:
    """``rows`` sequences of ``context`` tokens run at once; ``spare`` slots a layer beyond the kept experts.

    ``memory``: None for as much as it takes. ``splits``: those of a pattern set that shares its budgets over the
    layers; the bytes are the same without. ``engine``: a child process has a prober beside it that holds the weights
    it reads for itself.
    """

    memory: int | None
    budgets: tuple[Budget, ...] = ()
    context: int | None = None
    rows: int = DEFAULT_ROWS
    spare: int = DEFAULT_SPARE_SLOTS
    splits: Splits | None = None
    engine: Literal["thread", "process"] = "thread"


@dataclass(frozen=True, slots=True)
class Fit:
    """One budget's bill in bytes, and whether it fits; ``reason`` says why not, and what would help.

    slots, layer_slots  a layer on average, and of every layer
    weights             the model with this budget as it is stored, without spare slots
    experts             bytes of all slots
    host                main memory beside: a blob for each slot, parked keys and values, the process itself
    """

    budget: Budget
    slots: int
    layer_slots: tuple[int, ...]
    weights: int
    experts: int
    host: int
    total: int
    fits: bool
    max_context: int
    """Longest context at which this budget fits with the same rows; 0 when none does."""
    reason: str


@dataclass(frozen=True, slots=True)
class SizeReport:
    """What every budget shares, one ``Fit`` a budget, and the most that fits."""

    memory: int | None
    context: int
    rows: int
    skeleton: int
    probed: int
    """What a prober beside a child's engine holds of the skeleton once more."""
    kv: int
    state: int
    """What blocks without keys and values keep of all sequences, however long they are."""
    workspace: int
    all_experts: int
    """Bytes of all expert blobs: what the host tier holds when nothing is to be read twice."""
    max_slots: int
    """Most slots a layer that fit; at most the number of experts."""
    fits: tuple[Fit, ...]

    @property
    def largest(self) -> Fit | None:
        """The fitting budget that keeps the most experts."""
        fitting = [fit for fit in self.fits if fit.fits]
        return max(fitting, key=lambda fit: (fit.budget.kept, fit.budget.active), default=None)


def size(shape: Shape, request: SizeRequest) -> SizeReport:
    """Skeleton + slots × layers × blob + KV bytes × context × rows + workspace, against the memory given.

    Raises InvalidInput: a budget that the model cannot run, a context beyond the model's, counts below 1.
    """
    context = _check(shape, request)
    kv, state = shape.context_token_bytes * context * request.rows, shape.state_bytes * request.rows
    workspace = (STEP_TOKENS + request.rows) * shape.activation_token_bytes + request.rows * shape.logits_row_bytes
    probed = shape.probed_bytes if request.engine == "process" else 0
    rest = _memory(request) - shape.skeleton_bytes - probed - kv - state - workspace
    max_slots = shape.num_experts if rest >= shape.experts_bytes else max(0, rest // shape.slot_bytes)
    budgets = request.budgets or usual_budgets(shape.top_k, shape.num_experts)
    report = SizeReport(
        memory=request.memory,
        context=context,
        rows=request.rows,
        skeleton=shape.skeleton_bytes,
        probed=probed,
        kv=kv,
        state=state,
        workspace=workspace,
        all_experts=shape.stored_experts_bytes,
        max_slots=max_slots,
        fits=(),
    )
    return replace(report, fits=tuple(_fit(shape, request, budget, report) for budget in budgets))


def _fit(shape: Shape, request: SizeRequest, budget: Budget, report: SizeReport) -> Fit:
    slots = min(budget.kept + request.spare, shape.num_experts)
    layer_slots = even_slots(slots, shape.layer_experts, "shared")
    if request.splits is not None:
        layer_slots = request.splits.layer_slots(budget.kept, slots - budget.kept)
    experts = sum(layer_slots) * shape.slot_blob_bytes
    base = report.skeleton + report.probed + experts + report.state + report.workspace
    room = _memory(request) - base
    longest = max(0, room // (shape.context_token_bytes * request.rows)) if room > 0 else 0
    longest = min(longest, shape.max_context) if shape.max_context else longest
    fits = base + report.kv <= _memory(request)
    processes = 2 if request.engine == "process" else 1
    return Fit(
        budget=budget,
        slots=slots,
        layer_slots=layer_slots,
        weights=shape.weights_bytes(budget.kept),
        experts=experts,
        host=whole_host_bytes(shape.slot_blob_bytes, sum(layer_slots))
        + report.state
        + report.kv * shape.kv_token_bytes // shape.context_token_bytes
        + processes * PROCESS_BYTES,
        total=base + report.kv,
        fits=fits,
        max_context=longest,
        reason="" if fits else _why(shape, request, slots, longest, report.max_slots),
    )


def _memory(request: SizeRequest) -> int:
    return BOUNDLESS if request.memory is None else request.memory


def _why(shape: Shape, request: SizeRequest, slots: int, longest: int, max_slots: int) -> str:
    if shape.skeleton_bytes > _memory(request):
        return "the skeleton alone (attention, embeddings, routers) is larger than the memory"
    if longest >= 1:
        return f"the keys and values are too large; it fits with a context of {longest} or fewer sequences"
    if max_slots >= 1:
        return f"needs {slots} slots a layer, {max_slots} fit; keep fewer experts"
    return "no slot fits beside skeleton, keys and values, and workspace; give more memory, or a shorter context"


def _check(shape: Shape, request: SizeRequest) -> int:
    for name, value, least in (("memory", _memory(request), 1), ("rows", request.rows, 1), ("spare", request.spare, 0)):
        if value < least:
            raise InvalidInput(f"{name} is {value}, but must be at least {least}", reason="SIZE_INVALID")
    for budget in request.budgets:
        budget.check(top_k=shape.top_k, num_experts=shape.num_experts)
    return settled_context(shape, request.context)


def settled_context(shape: Shape, wanted: int | None) -> int:
    """Tokens of a sequence: as wanted, else the model's, at most 4096. Raises InvalidInput beyond the model's own."""
    if wanted is None:
        return min(DEFAULT_CONTEXT, shape.max_context or DEFAULT_CONTEXT)
    if wanted < 1 or (shape.max_context is not None and wanted > shape.max_context):
        raise InvalidInput(
            f"context {wanted} is outside 1 to {shape.max_context}, the model's own", reason="CONTEXT_INVALID"
        )
    return wanted
