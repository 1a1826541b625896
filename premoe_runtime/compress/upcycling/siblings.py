"""Dense families whose stock class, with experts and a router in each block, is that of a family with experts. Pure.

Only those are here of which a block differs in nothing else, so that a model of whole copies computes what the dense
one does: routers renormalise, and nothing is shared, gated or normalised beside the experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from premoe_runtime.formats.errors import InvalidInput

_DENSE_ONLY = frozenset(
    {
        "layer_types",
        "max_window_layers",
        "mlp_bias",
        "pretraining_tp",
        "use_sliding_window",
        "auto_map",
        "_name_or_path",
    }
)


@dataclass(frozen=True, slots=True)
class Sibling:
    """A family with experts. ``never``: what a dense config must not ask for, since this class has no such thing."""

    name: str
    architecture: str
    experts: str
    width: str
    never: tuple[str, ...]
    always: Mapping[str, object] = field(default_factory=dict)
    """What its config has to say beside counts and width."""


_MIXTRAL = Sibling(
    "mixtral", "MixtralForCausalLM", "num_local_experts", "intermediate_size", ("attention_bias", "mlp_bias")
)
SIBLINGS: Mapping[str, Sibling] = {
    "qwen3": Sibling(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        "num_experts",
        "moe_intermediate_size",
        ("use_sliding_window",),
        {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []},
    ),
    "llama": _MIXTRAL,
    "mistral": _MIXTRAL,
}


@dataclass(frozen=True, slots=True)
class Upcycling:
    """What becomes of every MLP: ``experts`` experts, ``top_k`` a token, each 1 / ``split`` of its neurons.

    ``noise``: of the experts' weights, as a part of their spread; ``router``: spread of the routers' logits for inputs
    of root mean square 1. With no noise the model computes what the dense one does (docs/compress.md).
    """

    experts: int
    top_k: int
    split: int = 1
    noise: float = 0.0
    router: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises InvalidInput (UPCYCLING_INVALID)."""
        wrong = ""
        if not 1 <= self.top_k <= self.experts or self.experts < 2:
            wrong = f"{self.top_k} of {self.experts} experts a token: give 2 experts at least, and no more a token"
        elif self.split < 1 or self.experts % self.split or self.top_k % self.split:
            wrong = (
                f"--split {self.split}: {self.experts} experts and {self.top_k} of them a token have to be multiples "
                "of it, so that all parts of a copy run together; give others"
            )
        elif not (self.noise >= 0 and self.router > 0):
            wrong = f"--noise {self.noise} and --router {self.router}: give 0 or more, and more than 0"
        if wrong:
            raise InvalidInput(wrong, reason="UPCYCLING_INVALID")


def sibling_of(data: Mapping[str, object], where: str) -> Sibling:
    """Of a dense model's config. Raises InvalidInput for a family without one (NO_SIBLING), and for what it lacks."""
    name = data.get("model_type")
    sibling = SIBLINGS.get(name) if isinstance(name, str) else None
    if sibling is None:
        raise InvalidInput(
            f"{where}: no stock class is that of {name!r} with experts and nothing else; those that can be upcycled: "
            f"{', '.join(sorted(SIBLINGS))}",
            reason="NO_SIBLING",
        )
    if data.get("quantization_config"):
        raise InvalidInput(
            f"{where}: weights in a number format cannot be split or shifted; give the model in 16 or 32 bits",
            reason="NUMBERS_UNSUPPORTED",
        )
    for flag in sibling.never:
        if data.get(flag):
            raise InvalidInput(
                f"{where}: {flag} is set, which {sibling.name} has no place for; give a model without",
                reason="NO_SIBLING",
            )
    return sibling


def moe_config(
    data: Mapping[str, object], defaults: Mapping[str, object], width: int, what: Upcycling, sibling: Sibling
) -> dict[str, object]:
    """The sibling's config. ``defaults``: all that the dense class makes of ``data``: the sibling's own differ.

    ``width``: neurons of the dense MLP.
    """
    said = {"rope_parameters"} & defaults.keys() if not {"rope_theta", "rope_scaling"} & data.keys() else set()
    kept = {
        "hidden_act",
        "rms_norm_eps",
        "head_dim",
        "max_position_embeddings",
        "tie_word_embeddings",
        "sliding_window",
    }
    kept |= {"num_key_value_heads", "attention_bias", "bos_token_id", "eos_token_id", "pad_token_id"} | said
    written = {name: defaults[name] for name in sorted(kept & defaults.keys())} | dict(data)
    if "rope_theta" not in data and "rope_scaling" in data:
        raise InvalidInput("config.json scales its rope and names no rope_theta; write it out", reason="CONFIG_INVALID")
    return {
        **{name: value for name, value in written.items() if name not in _DENSE_ONLY},
        "model_type": sibling.name,
        "architectures": [sibling.architecture],
        **sibling.always,
        sibling.experts: what.experts,
        "num_experts_per_tok": what.top_k,
        sibling.width: width // what.split,
    }
