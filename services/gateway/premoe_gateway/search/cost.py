"""What answers cost in arithmetic."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """``active``: experts per token of its budget; ``shared``: parameters of all but the routed experts, ``expert``:
    of one routed expert in every MoE layer together; 0 where the worker does not tell.
    """

    active: int
    shared: int = 0
    expert: int = 0


def flops(facts: ModelFacts, experts: int, tokens: int) -> float | None:
    """Of ``tokens`` (prompt and answer) through a model with ``experts`` active ones; None where it does not tell.

    2 × (shared + experts × expert) × tokens: a multiplication and an addition for every active parameter. An estimate:
    attention over earlier tokens is left out, which counts for more the longer they are; an embedding table that is no
    output layer, too, counts as if it were multiplied with; a prompt counts in full for every answer, also where an
    engine uses its keys and values again.
    """
    if not (facts.shared and facts.expert):
        return None
    return 2.0 * (facts.shared + experts * facts.expert) * tokens
