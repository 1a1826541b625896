"""Low-rank adapters in the files of PEFT: one adapter for one pruned set of experts of one pack.

``adapter_model.safetensors`` and ``adapter_config.json`` are what PEFT and vLLM read; ``premoe_adapter.json`` says
which weights, pattern and experts they belong to. Written to ``adapters/<pattern>/<adapter_id>`` of an object store.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import blake3
from safetensors.torch import save
from torch import Tensor

from premoe_runtime.families.spec import MoeModel
from premoe_runtime.storage import Store

FOLDER = "adapters"
WEIGHTS_FILE, CONFIG_FILE, FACTS_FILE = "adapter_model.safetensors", "adapter_config.json", "premoe_adapter.json"
_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True, eq=False)
class LowRankPair:
    """W + (alpha / r) b a: ``a`` [r, in], ``b`` [out, r]; of experts [E, ...]."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """Adapters by the names of ``Student``; experts' have one row an expert of ``kept``, in its order.

    ``kept``: experts of every layer by their numbers in the pack. ``facts``: whose it is, for ``premoe_adapter.json``.
    """

    pairs: Mapping[str, LowRankPair]
    rank: int
    alpha: float
    kept: Sequence[Sequence[int]]
    facts: Mapping[str, object]

    def files(self, model: MoeModel) -> dict[str, bytes]:
        """Every file by its name. ``model``: that of the pack, which knows how tensors are called."""
        tensors = dict[str, Tensor]()
        for name, pair in sorted(self.pairs.items()):
            if name.startswith("experts."):
                tensors |= _of_experts(name, pair, model, self.kept)
            else:
                tensors |= _named(name.removesuffix(".weight"), pair.a, pair.b)
        targets = sorted({name.removeprefix(_PREFIX).rsplit(".lora_", 1)[0] for name in tensors})
        facts = {"tool": f"premoe {version('premoe')}", **self.facts, "experts": [list(layer) for layer in self.kept]}
        return {
            WEIGHTS_FILE: save({name: tensors[name] for name in sorted(tensors)}, metadata={"format": "pt"}),
            CONFIG_FILE: _json(self._config(targets)),
            FACTS_FILE: _json(facts),
        }

    def _config(self, targets: Sequence[str]) -> dict[str, object]:
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": self.facts.get("origin"),
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "target_modules": list(targets),
            "modules_to_save": None,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "use_rslora": False,
        }


def adapter_id(files: Mapping[str, bytes]) -> str:
    """blake3 of all files."""
    whole = blake3.blake3()
    for name, data in sorted(files.items()):
        whole.update(name.encode() + len(data).to_bytes(8, "little") + data)
    return whole.hexdigest()[:32]


def put_adapter(store: Store, pattern: str, files: Mapping[str, bytes]) -> str:
    """Store an adapter beside the patterns, what names it last, and return its folder."""
    folder = f"{FOLDER}/{pattern}/{adapter_id(files)}"
    for name in sorted(files, key=lambda name: (name == CONFIG_FILE, name)):
        store.put(f"{folder}/{name}", files[name])
    return folder


def _named(module: str, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    prefix = f"{_PREFIX}{module}"
    pair = {"lora_A": a, "lora_B": b}
    return {f"{prefix}.{last}.weight": one.detach().cpu().contiguous().clone() for last, one in pair.items()}


def _of_experts(name: str, pair: LowRankPair, model: MoeModel, kept: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """A field's pair as one of every matrix in it: gate and up share ``a``, and each has its rows of ``b``."""
    _, number, field = name.split(".")
    layer, found = int(number), dict[str, Tensor]()
    for tensor in model.expert_tensors:
        if tensor.field != field:
            continue
        rows = slice(tensor.row, tensor.row + tensor.shape[0])
        for place, expert in enumerate(kept[layer]):
            module = model.expert_name(layer, expert, tensor).removesuffix(".weight")
            found |= _named(module, pair.a[place], pair.b[place, rows])
    return found


def _json(content: object) -> bytes:
    return json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"
