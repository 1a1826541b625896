"""Writes docs/families.md: every family that is served, from its spec, and those that are refused, with the reason.

python tools/families_page.py            write it
python tools/families_page.py --check    fail when it is stale, naming the command that mends it
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from premoe_runtime.engines.vllm.coverage import FAMILIES as ON_VLLM
from premoe_runtime.families.refused import REFUSED
from premoe_runtime.families.registry import FAMILIES
from premoe_runtime.families.spec import FamilySpec
from premoe_runtime.formats.manifest import RouterSpec
from premoe_runtime.numbers.registry import FORMATS
from premoe_runtime.numbers.registry import REFUSED as METHODS_REFUSED
from premoe_runtime.packs.contents import WEIGHT_DTYPES

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
SUITE = "tests/unit/premoe_runtime/test_every_family.py"
NUMBERS_SUITE = "tests/unit/premoe_runtime/test_number_formats.py"
INTEGERS_SUITE = "tests/unit/premoe_runtime/test_integer_checkpoints.py"
PACKAGE = "premoe_runtime.families"
HEAD = f"""# Model families

Made by `python tools/families_page.py` from `premoe_runtime/families/`. A family is a `model_type` of config.json. Its
routers are shown as the stock class's own default configuration has them; a checkpoint's config decides.

Every family has rows in [test_every_family.py](../{SUITE}): a random checkpoint is packed, loaded without experts,
restricted, swapped, profiled and served. Its logits equal those of the unmodified stock class of transformers, masked
from outside, bit for bit on the CPU in float32 and bfloat16, with masks that change at least 30 % of the selections;
greedy answers equal `generate` in float32.

Formats of weights: {", ".join(WEIGHT_DTYPES)}, and what a row names: packs keep those tensors as they are, and the
engine computes with what it dequantises of them on arrival, bit for bit what transformers makes of them
([test_number_formats.py](../{NUMBERS_SUITE})), or what compressed-tensors does and the definitions of AWQ and GPTQ say
([test_integer_checkpoints.py](../{INTEGERS_SUITE})). That is the engine `hf`; what `vllm` runs, and why not the others,
is in [vllm.md](vllm.md).

Of `compressed-tensors`: `pack-quantized` and `int-quantized`, 4 and 8 bits, by group or channel, with or without zero
points, also where columns were grouped by importance. Of `gptq`: 4 and 8 bits, both versions of zero points, also by
importance. Of `awq`: `gemm`. Only weights are dequantised: activations and the cache of keys and values stay in the
model's dtype, so a W8A8 checkpoint is computed a little more exactly than by kernels that round activations.

Code of a checkpoint is never run. A tokenizer that is code, as Kimi-K2's, is refused; make a `tokenizer.json` of its
vocabulary (of tiktoken's: transformers' `TikTokenConverter`) and put it beside, without `auto_map`.
"""


def arithmetic(router: RouterSpec) -> str:
    """What a router does, in words."""
    parts = [{"topk_softmax": "top-k, then softmax"}.get(router.score, router.score)]
    if router.logits_dtype == "float32":
        parts[0] += " in float32"
    if router.bias:
        parts.append("chosen by score + bias")
    if router.groups > 1:
        by = "two best" if router.group_score == "top2" else "best"
        parts.append(f"from {router.chosen_groups} of {router.groups} groups by their {by}")
    if router.score in ("softmax", "sigmoid"):
        parts.append("renormalised" if router.renormalise else "not renormalised")
    return ", ".join([*parts, f"× {router.scale:g}"] if router.scale != 1.0 else parts)


def stored(spec: FamilySpec) -> str:
    """How experts lie in checkpoints."""
    return "one by one or fused" if _one_by_one(spec) else "fused"


def _one_by_one(spec: FamilySpec) -> bool:
    return all(part.endswith(".weight") for field in spec.fields for part in field.parts)


def numbers(spec: FamilySpec) -> str:
    """Formats that its experts may be stored in, by ``quant_method``."""
    fused = any(field.transposed for field in spec.fields)
    return ", ".join(
        f"`{name}`" for name, kind in sorted(FORMATS.items()) if (fused if kind.experts_only else _one_by_one(spec))
    )


def page() -> str:
    rows = ["| type | models | router | experts on disk | number formats | engines |", "|---|---|---|---|---|---|"]
    for name, spec in sorted(FAMILIES.items()):
        models, _, _ = (import_module(f"{PACKAGE}.{name}").__doc__ or "").partition(":")
        router = arithmetic(spec.router(CONFIG_MAPPING[name]()))
        engines = "`hf`, `vllm`" if name in ON_VLLM else "`hf`"
        known = f"{router} | {stored(spec)} | {numbers(spec) or 'none'} | {engines} |"
        rows.append(f"| `{name}` | {models} | {known}")
        rows += [f"| `{alias}` | read as `{name}`, without its code | {known}" for alias in spec.aliases]
    other = ["## Number formats that are refused", "", "| `quant_method` | why |", "|---|---|"]
    other += [f"| `{name}` | {why} |" for name, why in sorted(METHODS_REFUSED.items())]
    refused = ["## Refused, and why", "", "| type | why |", "|---|---|"]
    refused += [f"| `{name}` | {why} |" for name, why in sorted(REFUSED.items())]
    return "\n".join([HEAD, *rows, "", *other, "", *refused, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when the page is stale")
    if parser.parse_args(arguments).check:
        if PAGE.is_file() and PAGE.read_text() == page():
            return 0
        print(f"{PAGE.name} is stale; run: python tools/families_page.py", file=sys.stderr)
        return 1
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
