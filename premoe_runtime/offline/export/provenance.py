"""What a cut checkpoint says of itself: its config, the list of experts that it has, and its card. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from premoe_runtime.families.config_keys import PREDICTED_BLOCKS, with_counts
from premoe_runtime.families.registry import parse_json_object, read_model
from premoe_runtime.formats.allocation import slots_text
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.offline.export.cut import Cut

KEY = "premoe"
"""Where config.json says where the checkpoint comes from; stock classes carry unknown fields along."""
EXPERTS_FILE = "premoe_experts.json"
"""The experts of every layer by their numbers in the model that was cut; `premoe import-mask` reads it."""
CARD_FILE = "README.md"


def describe(manifest: Manifest, cut: Cut) -> dict[str, object]:
    """Where the checkpoint comes from, as config.json and the list of experts have it."""
    pattern, kept = cut.pattern, sum(cut.layer_experts) / manifest.num_layers
    return {
        "tool": f"premoe {version('premoe')}",
        "model_id": manifest.model_id,
        "weights_id": manifest.weights_id,
        "origin": manifest.origin.url,
        "revision": manifest.origin.revision,
        "task": pattern.task,
        "pattern_id": pattern.pattern_id,
        "score": pattern.metric,
        "semantics": "slice" if cut.rescales else pattern.semantics,
        "budget": f"{cut.active}/{kept:g}",
        "allocation": cut.spread,
        "experts_before": _number(manifest.layer_experts),
        "experts": _number(cut.layer_experts),
    }


def config_file(config: bytes, manifest: Manifest, cut: Cut) -> bytes:
    """The pack's config.json with the new numbers and the provenance.

    Raises InvalidInput (CONFIG_INVALID) where the family does not read the numbers from it.
    """
    data = with_counts(parse_json_object(config, "config.json"), experts=max(cut.layer_experts), top_k=cut.active)
    if (before := data.get(KEY)) is not None:
        data["premoe_before"] = before
    written = json.dumps({**data, KEY: describe(manifest, cut)}, indent=2, ensure_ascii=False).encode() + b"\n"
    found = read_model(written)
    if (found.num_experts, found.top_k) != (max(cut.layer_experts), cut.active):
        raise InvalidInput(
            f"config.json of this {manifest.family} names its number of experts or its top-k by no key that is known; "
            "pack the checkpoint again with both written out",
            reason="CONFIG_INVALID",
        )
    return written


def experts_file(manifest: Manifest, cut: Cut) -> bytes:
    """``premoe_experts.json``: the kept experts of every layer, in the order of their new numbers."""
    head = json.dumps({**describe(manifest, cut), "layers": None}, indent=1).removesuffix("null\n}")
    layers = ",\n".join(f"  {json.dumps(cut.experts(layer))}" for layer in range(manifest.num_layers))
    return f"{head}[\n{layers}\n ]\n}}\n".encode()


def card(manifest: Manifest, cut: Cut, config: Mapping[str, object]) -> bytes:
    """The model card: what was cut, by what, and how far it is the model that runs under the pattern."""
    facts = describe(manifest, cut)
    rows = [
        ("cut from", f"{facts['origin'] or 'a pack'} {facts['revision']}".strip()),
        ("pack", manifest.model_id),
        ("weights", manifest.weights_id),
        ("task", cut.pattern.task),
        ("pattern", facts["pattern_id"]),
        ("ranked by", cut.pattern.metric),
        ("experts a layer", f"{slots_text(cut.layer_experts)} of {slots_text(manifest.layer_experts)}"),
        ("experts a token", f"{cut.active} of the original's {manifest.top_k}"),
        ("chosen", cut.spread),
        ("written by", facts["tool"]),
    ]
    table = "\n".join(f"| {what} | {value} |" for what, value in (("", ""), ("---", "---"), *rows))
    parts = [
        "---\nlibrary_name: transformers\ntags: [premoe, moe, pruned]\n---",
        f"# {manifest.family}, {_cut_to(manifest, cut)}",
        table,
        _loading(cut),
        _exactness(cut),
    ]
    if config.get(PREDICTED_BLOCKS):
        parts.append("Multi-token prediction: its blocks are not in this checkpoint, and config.json says so.")
    parts.append(f"Experts are numbered anew, in their old order; `{EXPERTS_FILE}` has the old numbers.")
    return ("\n\n".join(parts) + "\n").encode()


def _cut_to(manifest: Manifest, cut: Cut) -> str:
    if cut.layer_experts == manifest.layer_experts:
        return "all experts of a pack"
    return f"cut to the experts of the task {cut.pattern.task}"


def _number(layers: Sequence[int]) -> int | list[int]:
    """One number where all layers have it."""
    return layers[0] if len(set(layers)) == 1 else list(layers)


def _loading(cut: Cut) -> str:
    if len(set(cut.layer_experts)) > 1:
        return (
            "Its layers have different numbers of experts, which a config cannot say: `premoe pack` reads this "
            "checkpoint, transformers and vLLM do not."
        )
    return "A checkpoint like any other of its family: `AutoModelForCausalLM.from_pretrained` loads it."


def _exactness(cut: Cut) -> str:
    if cut.rescales:
        return (
            f"**Not the model that runs under the pattern**: {cut.rescales}. It was written with `--accept-rescale`, "
            "and is the model that runs under the pattern with `slice` semantics."
        )
    return (
        "It computes what the whole model computes restricted to these experts, up to the rounding of its arithmetic."
    )
