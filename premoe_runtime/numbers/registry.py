"""Which number format a config names; everything else is refused by name, with the reason."""

from __future__ import annotations

from collections.abc import Mapping

from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import Manifest, NumberSpec
from premoe_runtime.numbers.awq import Awq
from premoe_runtime.numbers.compressed import CompressedIntegers
from premoe_runtime.numbers.fp8 import Fp8
from premoe_runtime.numbers.gptq import Gptq
from premoe_runtime.numbers.mxfp4 import Mxfp4
from premoe_runtime.numbers.spec import NumberFormat

FORMATS: Mapping[str, type[NumberFormat]] = {one.method: one for one in (Awq, CompressedIntegers, Fp8, Gptq, Mxfp4)}
_CODEBOOK = "its weights are codes of a learnt codebook, for which there is no arithmetic here"
_LIBRARY = "its tensors have the layout of one library's kernels, and no published form outside of them"
REFUSED: Mapping[str, str] = {
    "aqlm": _CODEBOOK,
    "auto-round": "it packs in the layouts of others; export the model as AWQ or GPTQ",
    "bitnet": "its layers compute with ternary weights and rounded activations, not with dequantised weights",
    "bitsandbytes": _LIBRARY,
    "eetq": _LIBRARY,
    "fbgemm_fp8": "it bounds activations by input_scale_ub, so that dequantised weights give other answers",
    "fp_quant": "it rotates activations before every layer, so that dequantised weights give other answers",
    "higgs": _CODEBOOK,
    "hqq": _LIBRARY,
    "modelopt": "its scales are nested in two levels, which no file here reads",
    "quanto": _LIBRARY,
    "quark": _LIBRARY,
    "spqr": _LIBRARY,
    "torchao": "it saves tensors of its own Python classes",
    "vptq": _CODEBOOK,
}
"""``quant_method`` → why not."""


def read_numbers(config: object, where: str = "config.json") -> NumberFormat | None:
    """The format of a ``quantization_config``; None for None: weights are stored as they are computed with.

    Raises InvalidInput: QUANTISED for a method that is not known here, NUMBERS_UNSUPPORTED for one of its settings.
    """
    if config is None:
        return None
    method = config.get("quant_method") if isinstance(config, Mapping) else config
    if isinstance(config, Mapping) and isinstance(method, str) and method in FORMATS:
        return FORMATS[method].read(config, where)
    why = REFUSED.get(method) if isinstance(method, str) else None
    raise InvalidInput(
        f"{where}: checkpoints quantised by {method!r} cannot be packed: {why or 'this method is not known'}; "
        f"give one in {', '.join(sorted(FORMATS))}, bf16, fp16 or fp32",
        reason="QUANTISED",
    )


def told(manifest: Manifest) -> str:
    """How a model's weights are stored and what they become, for people; empty where they are computed with as stored.

    Raises InvalidInput as ``numbers_of`` does.
    """
    return f"{numbers_of(manifest.numbers).title}, dequantised to {manifest.dtype}" if manifest.numbers else ""


def numbers_of(spec: NumberSpec) -> NumberFormat:
    """The format that a manifest names. Raises InvalidInput (QUANTISED) for one of a later version."""
    if spec.method not in FORMATS:
        raise InvalidInput(
            f"the pack's number format {spec.method!r} is not known; known: {', '.join(sorted(FORMATS))}",
            reason="QUANTISED",
        )
    return FORMATS[spec.method](spec)
