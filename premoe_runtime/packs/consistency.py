"""A pack's manifest against its own config and skeleton: where they disagree, workers would answer wrongly. Pure.

Digests show that bytes are the manifest's. That the manifest is the model's shows here only: whoever changes it can
also make its id right again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from premoe_runtime.families.spec import MoeModel
from premoe_runtime.families.stored import as_stored
from premoe_runtime.formats.errors import CorruptData
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.formats.safetensors import Tensor, shown
from premoe_runtime.packs.contents import WEIGHT_DTYPES, TensorInfo
from premoe_runtime.packs.layout import blob_layout


def contradiction(manifest: Manifest, model: MoeModel) -> str:
    """What a manifest says otherwise than its config.json, read as ``model``; empty when they agree.

    Layers may have fewer experts than the config says: how many, the skeleton's routers know.
    """
    for what, says, right in (
        ("family", manifest.family, model.family),
        ("router", manifest.router, model.router),
        ("top-k", manifest.top_k, model.top_k),
        ("hidden size", manifest.hidden_size, model.hidden_size),
        ("number format", manifest.numbers, model.numbers.spec if model.numbers else None),
        ("list of MoE blocks", [layer.block for layer in manifest.layers], list(model.blocks)),
    ):
        if says != right:
            return f"its {what} is {says}, that of its config.json is {right}"
    if manifest.num_experts > model.num_experts:
        return f"its number of experts is {manifest.num_experts}, that of its config.json is {model.num_experts}"
    if manifest.dtype not in WEIGHT_DTYPES:
        return f"its experts are {manifest.dtype}, which no checkpoint's are"
    dtypes = {field.name: field.dtype for field in manifest.layout.fields}
    for field in model.fields:
        if dtypes.get(field.name, "") not in (field.dtypes or ((manifest.dtype,) if model.plain else WEIGHT_DTYPES)):
            return "its blobs are not as its config.json says"
    same = manifest.layout == blob_layout(model, manifest.dtype, dtypes)
    return "" if same else "its blobs are not as its config.json says"


def skeleton_contradiction(manifest: Manifest, model: MoeModel, tensors: Sequence[Tensor | TensorInfo]) -> str:
    """Where all the skeleton's tensors are not those of the config, or not of the experts; empty when they are.

    ``model``: that of the config, cut to the manifest's experts.
    """
    model = as_stored(model, {tensor.name for tensor in tensors})
    for tensor in tensors:
        known = model.skeleton.get(tensor.name)
        if known is None:
            return f"its skeleton has {shown(tensor.name)}, which is no tensor of its model"
        if tensor.shape != known.shape:
            by = "manifest" if tensor.name in model.routers else "config.json"
            return f"{tensor.name} has shape {list(tensor.shape)}, by its {by} {list(known.shape)}"
        if tensor.dtype not in (allowed := known.dtypes or WEIGHT_DTYPES):
            return f"{tensor.name} has dtype {tensor.dtype}; supported: {', '.join(allowed)}"
    for name, count in Counter(tensor.name for tensor in tensors).most_common(1):
        if count > 1:
            return f"its skeleton has {shown(name)} {count} times"
    tied = {name for name, known in model.skeleton.items() if known.optional}
    lacking = sorted(model.skeleton.keys() - tied - {tensor.name for tensor in tensors})
    if lacking:
        return f"its skeleton lacks {lacking[0]} ({len(lacking)} tensors in all)"
    return unlikely_dtype(manifest.dtype, model, tensors)


def unlikely_dtype(experts: str, model: MoeModel, skeleton: Sequence[Tensor | TensorInfo]) -> str:
    """Why routed experts of this dtype cannot belong to the skeleton; empty when they can.

    Nothing in a blob says how its bytes are to be read. So the dtype must be the one that the config states, or occur
    in the skeleton; a checkpoint where neither holds is not packed either.
    """
    occur = sorted({tensor.dtype for tensor in skeleton})
    if experts == model.stated_dtype or experts in occur:
        return ""
    stated = model.stated_dtype or "no dtype"
    return f"its experts are {experts}, but its config.json states {stated} and its skeleton is {' and '.join(occur)}"


def refuse(wrong: str) -> None:
    """Raise CorruptData (PACK_MISMATCH) for a contradiction."""
    if wrong:
        raise CorruptData(f"the pack contradicts itself: {wrong}; pack the model again", reason="PACK_MISMATCH")
