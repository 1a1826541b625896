"""A small Qwen3-MoE written for training on one core.

Its state dict has the names of `transformers.Qwen3MoeForCausalLM`, so export is a plain load. It is faster to train
than the stock class here: experts are multiplied as groups, and the gate weight is applied on the expert width.
"""

from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of the model."""

    vocabulary: int = 512
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_width: int = 32
    experts: int = 64
    experts_per_token: int = 4
    expert_width: int = 32
    rope_theta: float = 10000.0

    def as_dict(self) -> dict[str, int | float]:
        """Plain values, for files."""
        return asdict(self)


@dataclass(slots=True)
class Routing:
    """What one layer's router did in one forward pass."""

    logits: Tensor
    probabilities: Tensor
    counts: Tensor


@dataclass(slots=True)
class Output:
    """Next-token logits and the routing of every layer."""

    logits: Tensor
    routing: list[Routing] = field(default_factory=list)


class Norm(nn.Module):
    """Root-mean-square norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, 1e-6)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.head_width
        self.q_proj = nn.Linear(shape.hidden, shape.heads * width, bias=False)
        self.k_proj = nn.Linear(shape.hidden, shape.kv_heads * width, bias=False)
        self.v_proj = nn.Linear(shape.hidden, shape.kv_heads * width, bias=False)
        self.o_proj = nn.Linear(shape.heads * width, shape.hidden, bias=False)
        self.q_norm = Norm(width)
        self.k_norm = Norm(width)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        rows, length, _ = x.shape
        shape = self.shape
        q = self.q_norm(self.q_proj(x).view(rows, length, shape.heads, shape.head_width)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(rows, length, shape.kv_heads, shape.head_width)).transpose(1, 2)
        v = self.v_proj(x).view(rows, length, shape.kv_heads, shape.head_width).transpose(1, 2)
        groups = shape.heads // shape.kv_heads
        k = rotate(k, cos, sin).repeat_interleave(groups, 1)
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), k, v.repeat_interleave(groups, 1), attn_mask=mask)
        out: Tensor = self.o_proj(y.transpose(1, 2).reshape(rows, length, -1))
        return out


class Router(nn.Module):
    """The gate of one layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape.experts, shape.hidden) * 0.5 / shape.hidden**0.5)


class Experts(nn.Module):
    """The experts of one layer, stacked as the stock class stacks them."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        up = 0.7 / shape.hidden**0.5
        down = 1.4 / (shape.expert_width * 2 * shape.layers) ** 0.5
        self.gate_up_proj = nn.Parameter(torch.randn(shape.experts, 2 * shape.expert_width, shape.hidden) * up)
        self.down_proj = nn.Parameter(torch.randn(shape.experts, shape.hidden, shape.expert_width) * down)

    def forward(self, x: Tensor, gates: Tensor, counts: Tensor) -> Tensor:
        """Outputs of tokens sorted by expert; `gates` are their gate weights, `counts` the tokens per expert."""
        ends = counts.cumsum(0).to(torch.int32)
        a, b = F.grouped_mm(x, self.gate_up_proj.transpose(1, 2), offs=ends).chunk(2, -1)
        return F.grouped_mm(F.silu(a) * b * gates, self.down_proj.transpose(1, 2), offs=ends)


class SparseLayer(nn.Module):
    """Top-k routing over the experts, with the gate weights normalised over the chosen ones."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.chosen = shape.experts_per_token
        self.gate = Router(shape)
        self.experts = Experts(shape)

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        flat = x.reshape(-1, x.shape[-1])
        logits = F.linear(flat, self.gate.weight)
        probabilities = logits.softmax(-1)
        weights, chosen = probabilities.topk(self.chosen, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        pairs = chosen.reshape(-1)
        order = pairs.argsort(stable=True)
        token = order // self.chosen
        counts = torch.bincount(pairs, minlength=logits.shape[-1])
        out = self.experts(flat.index_select(0, token), weights.reshape(-1).index_select(0, order)[:, None], counts)
        y = torch.zeros_like(flat).index_add_(0, token, out)
        return y.view(x.shape), Routing(logits, probabilities, counts)


class Block(nn.Module):
    """One layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = Norm(shape.hidden)
        self.post_attention_layernorm = Norm(shape.hidden)
        self.self_attn = Attention(shape)
        self.mlp = SparseLayer(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> tuple[Tensor, Routing]:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        y, routing = self.mlp(self.post_attention_layernorm(x))
        return x + y, routing


class Body(nn.Module):
    """Embedding, layers and the last norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.hidden)


class TinyMoE(nn.Module):
    """The whole model, with tied embeddings."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Body(shape)
        nn.init.normal_(self.model.embed_tokens.weight, std=0.02)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                last = 0.5 / (2 * shape.layers) ** 0.5 if name.endswith("o_proj") else 0.7
                nn.init.normal_(module.weight, std=last / module.in_features**0.5)

    def forward(self, ids: Tensor, positions: Tensor, documents: Tensor) -> Output:
        """Documents packed into one row do not see each other."""
        width = self.shape.head_width
        inverse = 1 / self.shape.rope_theta ** (torch.arange(0, width, 2).float() / width)
        angles = positions[..., None].float() * inverse
        angles = torch.cat([angles, angles], -1)[:, None]
        length = ids.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool).tril()[None]
        mask = (mask & (documents[:, :, None] == documents[:, None, :]))[:, None]
        output = Output(torch.empty(0))
        x = self.model.embed_tokens(ids)
        for block in self.model.layers:
            x, routing = block(x, angles.cos(), angles.sin(), mask)
            output.routing.append(routing)
        output.logits = F.linear(self.model.norm(x), self.model.embed_tokens.weight)
        return output
