"""Every score read off its paper: loops in numpy over what the stock class of a family does, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from premoe_runtime.families import stock
from premoe_runtime.families.registry import FAMILIES
from premoe_runtime.families.spec import FamilySpec

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Token:
    """One token in one MoE layer: of the chosen experts the ids [k], weights g [k] and outputs f [k, H]."""

    token_id: int
    logits: Floats
    chosen: list[int]
    g: Floats
    f: Floats
    x: Floats
    y: Floats
    after: Floats
    margin: Floats
    loss: Floats


@dataclass(frozen=True, slots=True)
class Layer:
    """All tokens of one layer, and its weights: per expert its three matrices, and the router's rows."""

    tokens: list[Token]
    matrices: list[tuple[Floats, ...]]
    router: Floats
    renormalised: bool

    @property
    def n(self) -> int:
        return len(self.router)

    def of(self, expert: int) -> list[tuple[Token, int]]:
        """The tokens that chose an expert, and its rank in each."""
        return [(token, token.chosen.index(expert)) for token in self.tokens if expert in token.chosen]

    def mean(self, value: Callable[[Token, int], float]) -> Floats:
        """Per expert: mean over all tokens of ``value(token, rank)``, 0 where it is not chosen."""
        return np.array([sum(value(t, r) for t, r in self.of(e)) for e in range(self.n)]) / len(self.tokens)

    def mean_of_chosen(self, value: Callable[[Token, int], float]) -> Floats:
        """Per expert: mean over the tokens that chose it, 0 where none did."""
        return np.array([np.mean([value(t, r) for t, r in self.of(e)] or [0.0]) for e in range(self.n)])


def observe(folder: Path, family: str, samples: Sequence[tuple[tuple[int, ...], int]]) -> list[Layer]:
    """Run (token ids, number of answer tokens at the end) through the stock class, with its whole graph."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    spec = FAMILIES[family]
    blocks = [b for b in range(model.config.num_hidden_layers) if stock.sparse_part(model, spec, b) is not None]
    layers = []
    for block in blocks:
        part: Any = stock.sparse_part(model, spec, block)
        experts = part.get_submodule(spec.experts_module)
        pairs = zip(experts.gate_up_proj.detach(), experts.down_proj.detach(), strict=True)
        matrices = [tuple(map(numbers, (*both.chunk(2), down))) for both, down in pairs]
        rows = spec.router_tensors(part.get_submodule(spec.router_module)).weight
        router = spec.router(model.config)
        layers.append(Layer([], matrices, numbers(rows), router.renormalise or router.score == "topk_softmax"))
    for token_ids, answer in samples:
        for layer, found in zip(layers, _pass(model, spec, blocks, token_ids, answer), strict=True):
            layer.tokens.extend(found)
    return layers


def _pass(
    model: Any, spec: FamilySpec, blocks: list[int], token_ids: tuple[int, ...], answer: int
) -> list[list[Token]]:
    routed: list[dict[str, Tensor]] = []
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    after: list[Tensor] = []
    parts: list[Any] = [stock.sparse_part(model, spec, block) for block in blocks]
    handles = []
    for block, part in zip(blocks, parts, strict=True):
        handles += [
            part.get_submodule(spec.router_module).register_forward_hook(
                lambda _m, _i, out: routed.append(dict(zip(spec.router_returns, out, strict=True)))
            ),
            part.experts.register_forward_pre_hook(lambda _m, i: inputs.append(i[0].detach())),
            part.experts.register_forward_hook(lambda _m, _i, out: outputs.append(out)),
            model.model.layers[block].register_forward_hook(
                lambda _m, _i, out: after.append(out[0] if isinstance(out, tuple) else out)
            ),
        ]
    logits = model(input_ids=torch.tensor([token_ids])).logits[0].double()
    for handle in handles:
        handle.remove()
    margin, loss = (torch.zeros((), dtype=torch.float64) for _ in range(2))
    for place in range(len(token_ids) - answer - 1, len(token_ids) - 1):
        wanted = token_ids[place + 1]
        others = [v for v in range(logits.shape[1]) if v != wanted]
        margin = margin + logits[place, wanted] - torch.logsumexp(logits[place, others], 0)
        loss = loss - torch.log_softmax(logits[place], 0)[wanted]
    margins = torch.autograd.grad(margin, outputs, retain_graph=True)
    losses = torch.autograd.grad(loss, outputs)
    width = outputs[0].shape[-1]
    return [
        [
            Token(
                token_ids[t],
                numbers(routed[l]["logits"].view(len(token_ids), -1)[t]),
                routed[l]["ids"][t].tolist(),
                numbers(routed[l]["weights"][t]),
                np.stack([numbers(_expert(parts[l].experts, e, inputs[l][t])) for e in routed[l]["ids"][t].tolist()]),
                numbers(inputs[l][t]),
                *(numbers(each[l].reshape(-1, width)[t]) for each in (outputs, after, margins, losses)),
            )
            for t in range(len(token_ids))
        ]
        for l in range(len(blocks))  # noqa: E741
    ]


def _expert(experts: Any, expert: int, x: Tensor) -> Tensor:
    gate, up = (experts.gate_up_proj[expert] @ x).chunk(2)
    found: Tensor = experts.down_proj[expert] @ (experts.act_fn(gate) * up)
    return found


def numbers(tensor: Tensor) -> Floats:
    return tensor.detach().double().numpy()


def sigmoid(s: float) -> float:
    return float(1 / (1 + np.exp(-s)))


def norm(vector: Floats) -> float:
    return float(np.linalg.norm(vector))


def cos(one: Floats, other: Floats) -> float:
    return float(one @ other / max(norm(one) * norm(other), np.finfo(np.float64).tiny))


def confidence(token: Token) -> Floats:
    """p of the chosen experts: softmax over them alone."""
    e = np.exp(token.logits[token.chosen] - token.logits.max())
    return np.asarray(e / e.sum())


def peu(f: Callable[[float], float], threshold: float | None = None) -> Callable[[Layer], Floats]:
    """PreMoE v3, eq. 1 to 4 and 10; r and p on the grid of 1/256."""

    def score(layer: Layer) -> Floats:
        r = np.mean([confidence(token).max() for token in layer.tokens]) if threshold is None else threshold
        edge = min(round(float(r) * 256), 255)
        return layer.mean(
            lambda t, rank: f(t.logits[t.chosen[rank]]) if min(int(confidence(t)[rank] * 256), 255) >= edge else 0.0
        )

    return score


def tcess(f: Callable[[float], float]) -> Callable[[Layer], Floats]:
    def score(layer: Layer) -> Floats:
        total = np.zeros(layer.n)
        for token in layer.tokens:
            total[token.logits.argmax()] += f(token.logits.max())
        return total / len(layer.tokens)

    return score


def change(layer: Layer, token: Token, rank: int) -> float:
    """How far the routed output moves when one expert goes: where weights are shares, the others take over its own."""
    if not layer.renormalised:
        return float(token.g[rank]) * norm(token.f[rank])
    rest = [other for other in range(len(token.g)) if other != rank]
    without = token.g[rest] / token.g[rest].sum() * token.g.sum() @ token.f[rest]
    return norm(token.g @ token.f - without)


def share(layer: Layer, token: Token, rank: int) -> float:
    return float(token.g[rank] / token.g.sum() if layer.renormalised else token.g[rank])


def apart(vector: Callable[[Token, int], Floats]) -> Callable[[Layer], Floats]:
    def score(layer: Layer) -> Floats:
        means = [np.mean([vector(t, r) for t, r in layer.of(e)] or [np.zeros(1)], axis=0) for e in range(layer.n)]
        return np.array(
            [
                -sum(cos(means[p], means[q]) for q in range(layer.n) if q != p and len(layer.of(q)))
                if layer.of(p)
                else -layer.n
                for p in range(layer.n)
            ]
        )

    return score


def entropy(vector: Callable[[Token, int], Floats], least: float) -> Callable[[Layer], Floats]:
    def score(layer: Layer) -> Floats:
        found = []
        for expert in range(layer.n):
            seen = [vector(t, r) for t, r in layer.of(expert)]
            variance = np.var(seen, axis=0) if seen else np.zeros(len(layer.tokens[0].x))
            found.append(np.log(np.sqrt(np.maximum(variance, least))).sum())
        return np.array(found)

    return score


def outliers(vector: Callable[[Token, int], Floats]) -> Callable[[Layer], Floats]:
    def count(token: Token, rank: int) -> float:
        v = vector(token, rank)
        return float((np.abs(v) > 3 * np.sqrt(np.mean(v**2))).sum())

    return lambda layer: layer.mean_of_chosen(count)


def collaboration(layer: Layer) -> Floats:
    pairs = np.zeros((layer.n, layer.n))
    for token in layer.tokens:
        for one, other in combinations(token.chosen, 2):
            pairs[one, other] += 1
            pairs[other, one] += 1
    return np.asarray(np.log2(1 + pairs).sum(axis=1))


def token_similarity(layer: Layer) -> Floats:
    found = []
    for expert in range(layer.n):
        inputs = [token.x for token, _ in layer.of(expert)]
        pairs = [cos(one, other) for one, other in combinations(inputs, 2)]
        found.append(-np.mean(pairs) if pairs else -1.0 if inputs else -2.0)
    return np.array(found)


def weight_similarity(layer: Layer) -> Floats:
    flat = [np.concatenate([matrix.ravel() for matrix in matrices]) for matrices in layer.matrices]
    return np.array([-sum(cos(flat[p], flat[q]) for q in range(layer.n) if q != p) for p in range(layer.n)])


def stable_rank(layer: Layer) -> Floats:
    def rank(matrix: Floats) -> float:
        values = np.linalg.svd(matrix, compute_uv=False)
        return float((values**2).sum() / values.max() ** 2)

    return np.array([np.mean([rank(matrix) for matrix in matrices]) for matrices in layer.matrices])


def gradient(token: Token, rank: int) -> Floats:
    return np.asarray(token.g[rank] * token.margin)


PLAIN: dict[str, Callable[[Layer], Floats]] = {
    "peu": peu(lambda s: max(s, sigmoid(s))),
    "peu@0.3": peu(lambda s: max(s, sigmoid(s)), 0.3),
    "peu-sigmoid": peu(sigmoid),
    "peu-exp": peu(lambda s: float(np.exp(s))),
    "tcess": tcess(lambda s: s),
    "tcess-positive": tcess(lambda s: max(s, sigmoid(s))),
    "all-logits": lambda layer: np.mean([token.logits for token in layer.tokens], axis=0),
    "act-logits": lambda layer: layer.mean(lambda t, r: t.logits[t.chosen[r]]),
    "seer": lambda layer: layer.mean(lambda t, r: t.g[r]),
    "counts": lambda layer: layer.mean(lambda t, r: 1.0),
    "ecc": collaboration,
    "evtc": lambda layer: np.array([float(len({t.token_id for t, _ in layer.of(e)})) for e in range(layer.n)]),
    "norm": lambda layer: layer.mean(lambda t, r: t.g[r] * norm(t.f[r])),
    "reap": lambda layer: layer.mean_of_chosen(lambda t, r: t.g[r] * norm(t.f[r])),
    "ean": lambda layer: layer.mean(lambda t, r: norm(t.f[r])),
    "man": lambda layer: layer.mean_of_chosen(lambda t, r: norm(t.f[r])),
    "msan": lambda layer: layer.mean_of_chosen(lambda t, r: norm(t.f[r]) ** 2),
    "easy-ep": lambda layer: layer.mean(lambda t, r: t.g[r] * norm(t.f[r]) * max(1 - cos(t.after - t.y, t.after), 0.0)),
    "eas": apart(lambda t, r: t.f[r]),
    "eae": entropy(lambda t, r: t.f[r], 2.0**-30),
    "eao": outliers(lambda t, r: t.f[r]),
    "ets": token_similarity,
    "impact": lambda layer: layer.mean(lambda t, r: (norm(t.margin) * change(layer, t, r)) ** 2),
    "sens": lambda layer: layer.mean(lambda t, r: norm(t.margin) * share(layer, t, r)),
    "sens-norm": lambda layer: layer.mean(lambda t, r: norm(t.margin) * t.g[r] * norm(t.f[r])),
    "taylor": lambda layer: layer.mean(lambda t, r: abs(t.loss @ (t.g[r] * t.f[r]))),
    "egs": apart(gradient),
    "ege": entropy(gradient, 2.0**-36),
    "ego": outliers(gradient),
    "egn": lambda layer: layer.mean(lambda t, r: norm(gradient(t, r))),
    "ews": weight_similarity,
    "rwn": lambda layer: np.linalg.norm(layer.router, axis=1),
    "wsr": stable_rank,
    "ewn": lambda layer: np.array([np.sqrt(sum((m**2).sum() for m in matrices)) for matrices in layer.matrices]),
}
