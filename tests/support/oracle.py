"""The oracle of exactness: the unmodified stock class, masked from outside while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from operator import attrgetter
from typing import Any
from unittest import mock

import torch
from transformers import PreTrainedModel

from premoe_runtime.families import stock
from premoe_runtime.families.spec import FamilySpec
from premoe_runtime.formats.ids import ExpertId


@dataclass
class Masked:
    """What the patched functions saw: per call whether each token's chosen set differs from the full router's."""

    changed: list[torch.Tensor] = field(default_factory=list)

    @property
    def share_changed(self) -> float:
        """Of all (token, layer) pairs, the share whose selection the mask changed."""
        return float(torch.cat(self.changed).float().mean())


@contextmanager
def masked_selection(kept: torch.Tensor, rows: torch.Tensor) -> Iterator[Masked]:
    """While open, stock routers choose among kept experts only.

    ``kept``: bool[P, L, E]; ``rows``: i64[T], the row of each flattened token. ``torch.topk`` is patched: dropped
    experts' scores become -inf for the choice; the values it returns are the family's own, over all experts.
    """
    seen, layers, original = Masked(), kept.shape[1], torch.topk

    def topk(values: torch.Tensor, k: int, *args: Any, **kwargs: Any) -> Any:
        allowed = kept[:, len(seen.changed) % layers, : values.shape[-1]][rows]  # a layer may have fewer experts
        best = original(values.masked_fill(~allowed, -torch.inf), k, *args, **kwargs)
        free = original(values, k, *args, **kwargs)
        seen.changed.append((best.indices.sort(-1).values != free.indices.sort(-1).values).any(-1))
        return best

    with mock.patch.object(torch, "topk", topk):
        yield seen


@contextmanager
def masked_routers(model: PreTrainedModel, spec: FamilySpec, kept: torch.Tensor) -> Iterator[Masked]:
    """While open, the routers of any family's stock model choose among ``kept``, bool[L, E], only.

    Each router runs twice, without and with its mask. That is put where the family chooses: into the correction bias
    (the router's, or what its block hands it), into the scores before groups are cut (``torch.Tensor.softmax``), or
    into what ``topk`` or ``sparsemixer`` sees.
    """
    seen, ids = Masked(), spec.router_returns.index("ids")
    sparse = [stock.sparse_part(model, spec, block) for block in range(model.config.num_hidden_layers)]
    choosers = [
        (part, spec.chooser) if spec.chooser else (part.get_submodule(spec.router_module), "forward")
        for part in sparse
        if part is not None
    ]

    def masked(router: Any, choose: Any, allowed: torch.Tensor, *given: torch.Tensor) -> Any:
        free = choose(*given)
        if spec.handed_correction and given[1] is not None:
            found = choose(given[0], given[1].masked_fill(~allowed, -torch.inf))
        else:
            with _masked(router, spec, allowed):
                found = choose(*given)
        seen.changed.append((found[ids].sort(-1).values != free[ids].sort(-1).values).any(-1))
        return found

    with ExitStack() as stack:
        for (owner, name), allowed in zip(choosers, kept, strict=True):
            choose = partial(masked, owner, getattr(owner, name), allowed)
            stack.enter_context(mock.patch.object(owner, name, choose, create=True))
        yield seen


@contextmanager
def _masked(router: Any, spec: FamilySpec, allowed: torch.Tensor) -> Iterator[None]:
    if spec.correction:
        bias = attrgetter(spec.correction)(router)
        whole = bias.data
        bias.data = whole.masked_fill(~allowed, -torch.inf)
        try:
            yield
        finally:
            bias.data = whole
    elif (module := import_module(type(router).__module__)) and hasattr(module, "sparsemixer"):
        whole_mixer = module.sparsemixer

        def mixer(scores: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            return whole_mixer(scores.masked_fill(~allowed, -torch.inf), *args, **kwargs)

        with mock.patch.object(module, "sparsemixer", mixer):
            yield
    elif getattr(router, "topk_method", "") == "group_limited_greedy":
        softmax = torch.Tensor.softmax
        with mock.patch.object(
            torch.Tensor, "softmax", lambda *args, **kwargs: softmax(*args, **kwargs).masked_fill(~allowed, -torch.inf)
        ):
            yield
    else:
        topk = torch.topk

        def chosen(values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            return topk(values.masked_fill(~allowed, -torch.inf), *args, **kwargs)

        with mock.patch.object(torch, "topk", chosen), mock.patch.object(torch.Tensor, "topk", chosen):
            yield


@contextmanager
def sliced_router(kept: torch.Tensor, rows: torch.Tensor) -> Iterator[Masked]:
    """While open, stock routers behave as if dropped rows did not exist: -inf *before* their softmax."""
    seen, layers, original = Masked(), kept.shape[1], torch.nn.functional.softmax

    def softmax(logits: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        allowed = kept[:, len(seen.changed) % layers, : logits.shape[-1]][rows]
        top = logits.float().topk(2, dim=-1).indices
        seen.changed.append(~allowed.expand_as(logits).gather(-1, top).all(-1))
        return original(logits.masked_fill(~allowed, -torch.inf), *args, **kwargs)

    with mock.patch.object(torch.nn.functional, "softmax", softmax):
        yield seen


def stock_logits(model: PreTrainedModel, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """[B, S, V] of a plain forward without cache, no gradients."""
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids, use_cache=False, **kwargs).logits
    return logits


def check_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Bit for bit; float16 to 1e-2 where the processor has no instructions for it: torch's own loops add up in an
    order that depends on how many tokens there are. Raises AssertionError.
    """
    if found.dtype is torch.float16 and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
    else:
        assert torch.equal(found, expected)


def random_kept(rows: int, layers: int, experts: int, count: int, seed: int = 0) -> torch.Tensor:
    """bool[rows, layers, experts] with ``count`` experts kept per layer."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand((rows, layers, experts), generator=generator).argsort(-1)
    return order < count


def experts_of(kept: torch.Tensor) -> frozenset[ExpertId]:
    """Of bool[..., L, E]: the union over the leading dimensions."""
    union = kept.reshape(-1, *kept.shape[-2:]).any(0)
    return frozenset(ExpertId(layer, expert) for layer, expert in union.nonzero().tolist())
