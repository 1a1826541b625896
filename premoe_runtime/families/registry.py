"""Which family a config belongs to; everything else is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping

from premoe_runtime.families import (
    deepseek_v2,
    deepseek_v3,
    ernie4_5_moe,
    flex_olmo,
    glm4_moe,
    gpt_oss,
    granitemoe,
    hunyuan_v1_moe,
    jamba,
    lfm2_moe,
    minimax,
    minimax_m2,
    mixtral,
    olmoe,
    phimoe,
    qwen2_moe,
    qwen3_moe,
    qwen3_next,
)
from premoe_runtime.families.refused import REFUSED
from premoe_runtime.families.spec import FamilySpec, MoeModel
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.numbers.registry import read_numbers

FAMILIES: Mapping[str, FamilySpec] = {
    module.SPEC.name: module.SPEC
    for module in (
        qwen3_moe,
        qwen2_moe,
        mixtral,
        olmoe,
        deepseek_v2,
        deepseek_v3,
        glm4_moe,
        gpt_oss,
        granitemoe,
        ernie4_5_moe,
        flex_olmo,
        hunyuan_v1_moe,
        phimoe,
        minimax_m2,
        lfm2_moe,
        qwen3_next,
        minimax,
        jamba,
    )
}
ALIASES: Mapping[str, str] = {alias: spec.name for spec in FAMILIES.values() for alias in spec.aliases}
"""Model types that stock classes do not know → the family that they are."""


def parse_json_object(data: bytes, where: str) -> dict[str, object]:
    """A JSON object from an untrusted file. Raises InvalidInput."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            f"{where} is not JSON: {error}; correct it, or get it again", reason="CONFIG_INVALID"
        ) from error
    if not isinstance(found, dict):
        raise InvalidInput(f"{where} is not a JSON object; correct it, or get it again", reason="CONFIG_INVALID")
    return found


def parse_config(config: bytes, where: str = "config.json") -> tuple[FamilySpec, dict[str, object]]:
    """The family and the fields of a ``config.json``, as its stock class reads them (see ``as_stock``).

    Raises InvalidInput for files that are no JSON object (CONFIG_INVALID), families that are not supported
    (UNKNOWN_FAMILY), custom code (REMOTE_CODE) and number formats that are not (QUANTISED, NUMBERS_UNSUPPORTED).
    """
    data = as_stock(parse_json_object(config, where))
    model_type = data.get("model_type")
    if isinstance(model_type, str) and model_type in REFUSED:
        raise InvalidInput(
            f"{where}: models of type {model_type!r} cannot be packed: {REFUSED[model_type]}", reason="UNKNOWN_FAMILY"
        )
    spec = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if spec is None or not spec.ships_code:
        refuse_remote_code(data, where)
    if spec is None:
        raise InvalidInput(
            f"{where}: model type {model_type!r} is not supported; supported families: {', '.join(sorted(FAMILIES))}",
            reason="UNKNOWN_FAMILY",
        )
    read_numbers(data.get("quantization_config"), where)
    return spec, data


def as_stock(data: Mapping[str, object]) -> dict[str, object]:
    """A config under the model type that stock classes know."""
    model_type = data.get("model_type")
    known = ALIASES.get(model_type, model_type) if isinstance(model_type, str) else model_type
    return {**data, "model_type": known} if "model_type" in data else dict(data)


def read_model(config: bytes, where: str = "config.json") -> MoeModel:
    """Work out a checkpoint's content from its ``config.json`` alone; what the stock class ignores changes nothing.

    Raises what ``parse_config`` raises, and InvalidInput for what transformers refuses (CONFIG_REFUSED) and for
    models without experts or with impossible counts (CONFIG_INVALID).
    """
    spec, data = parse_config(config, where)
    from premoe_runtime.families import stock  # torch: seconds, for the first config only

    return stock.describe(spec, stock.build(stock.stock_config(spec, data, where), where), where)


def check_generation(data: Mapping[str, object], where: str = "generation_config.json") -> None:
    """Raise InvalidInput (GENERATION_CONFIG_REFUSED) for sampling defaults that transformers refuses."""
    from premoe_runtime.families import stock

    stock.generation_config(data, where)


def refuse_remote_code(data: Mapping[str, object], where: str) -> None:
    """Raise InvalidInput when a file asks for Python code from the checkpoint."""
    code = data.get("auto_map")
    if code:
        names = sorted(str(name) for name in code) if isinstance(code, dict) else [str(code)]
        way = "use a checkpoint of a supported family without custom code"
        if where.endswith("tokenizer_config.json"):
            way = (
                "make a tokenizer.json of its vocabulary (of tiktoken's: transformers' TikTokenConverter), "
                "put it beside, remove auto_map and set tokenizer_class to PreTrainedTokenizerFast"
            )
        raise InvalidInput(
            f"{where}: auto_map ({', '.join(names)}) asks for code from the checkpoint, which is never run; {way}",
            reason="REMOTE_CODE",
        )
