"""How many experts a layer keeps, and which: what a router that chooses within groups can take, too. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from premoe_runtime.compress.method import Job
from premoe_runtime.families.spec import MoeModel
from premoe_runtime.formats.arrays import F64, I64
from premoe_runtime.formats.errors import InvalidInput


def least_experts(model: MoeModel) -> int:
    """The fewest experts that a layer can have: those of a token, and as ``families.spec.check_groups`` wants it."""
    router = model.router
    if router.groups == 1:
        return model.top_k
    return router.groups * max(2, -(-model.top_k // router.chosen_groups))


def kept_a_layer(job: Job, count: int) -> int:
    """Of ``count`` experts of a layer, equally many of each group. Raises InvalidInput (SHARE_TOO_SMALL): too few."""
    model = job.old.model
    kept, least = job.share.of(count, least=0, multiple=model.router.groups), least_experts(model)
    if kept < least:
        why = f"every token uses {model.top_k}" if least == model.top_k else f"its router's groups need {least}"
        raise InvalidInput(
            f"{job.share} of {count} experts a layer are {kept}, but {why}; give a larger --budget",
            reason="SHARE_TOO_SMALL",
        )
    return kept


def best(values: F64, count: int, groups: int = 1) -> I64:
    """The ``count`` best of a layer's experts, equally many of each group of neighbours, ascending.

    values f64[E]; of equal ones the lower number stays.
    """
    order = np.argsort(-values.reshape(groups, -1), axis=1, kind="stable")[:, : count // groups]
    return np.asarray(np.sort((order + np.arange(groups)[:, None] * (len(values) // groups)).ravel()), np.int64)


def best_of_layers(job: Job, values: F64, counts: Sequence[int]) -> list[list[int]]:
    """``best`` of every layer. values f64[L, E], of which a layer has its own first ones."""
    experts, groups = job.old.manifest.layer_experts, job.old.model.router.groups
    return [
        best(row[:there], count, groups).tolist() for row, there, count in zip(values, experts, counts, strict=True)
    ]


def refuse_groups(job: Job, what: str) -> None:
    """Raise InvalidInput (GROUPS_UNSUPPORTED) for a router with groups, to which ``what`` does not keep."""
    groups = job.old.model.router.groups
    if groups > 1:
        raise InvalidInput(
            f"{job.old.model.family} chooses experts within {groups} groups, and {what} not keep to them; take a "
            "method or setting that drops equally many a layer",
            reason="GROUPS_UNSUPPORTED",
        )
