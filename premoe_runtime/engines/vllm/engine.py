"""The engine ``vllm``: vLLM's scheduling, KV and kernels under the port's commands, rules of choice and texts."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

from transformers import PreTrainedModel

from premoe_runtime.engines.base import Report, StepReport
from premoe_runtime.engines.child.crew import Alone
from premoe_runtime.engines.grammar import Grammars
from premoe_runtime.engines.hf.engine import eos_ids, request_limits
from premoe_runtime.engines.hf.model import bare_model
from premoe_runtime.engines.hf.tokenizer import load_tokenizer, skeleton_folder
from premoe_runtime.engines.stepping import DEFAULT_MAX_SEQUENCES, DEFAULT_PREFILL_TOKENS, StepEngine
from premoe_runtime.engines.text import TokenText
from premoe_runtime.engines.vllm import compat
from premoe_runtime.engines.vllm.arguments import engine_arguments
from premoe_runtime.engines.vllm.plan import SlotPlan
from premoe_runtime.engines.vllm.sequences import CoreSequences
from premoe_runtime.engines.vllm.slots import PackingCopier
from premoe_runtime.engines.vllm.sources import lent
from premoe_runtime.residency.blob_fields import torch_dtype
from premoe_runtime.residency.host_arena import HostArena
from premoe_runtime.residency.slot_shape import SlotShape
from premoe_runtime.residency.source import ExpertSource

ENVIRONMENT = {
    # The core runs here, where commands are carried out between its steps.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Hooks of the second runner have never run.
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    # One engine a process; which cores it gets is the system's to say.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Its lines go where ours go.
    "VLLM_CONFIGURE_LOGGING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
"""Of the process, unless it says otherwise, before vLLM is imported."""


class VllmEngine(StepEngine):
    """vLLM in this process, one engine a process; build it where it is to stay. ``shape``: of blobs as stored.

    ``active``: numbers of experts that tokens may use once it is compiled, each of which costs every step a little; an
    eager one asks what a step needs. ``device``: that of the settings. ``given``: arguments of vLLM's own. ``crew``: of
    the ranks, of which this engine is one. KV in main
    memory: ``max_sequences`` × ``context`` tokens, and as much again for paused sequences unless ``parked`` is off.
    Raises InvalidInput: no vLLM that fits, a model, a device or an argument that it does not take.
    """

    def __init__(
        self,
        source: ExpertSource,
        shape: SlotShape,
        arena: HostArena,
        *,
        active: Collection[int] = (),
        max_sequences: int = DEFAULT_MAX_SEQUENCES,
        context: int | None = None,
        prefill_tokens: int = DEFAULT_PREFILL_TOKENS,
        parked: bool = True,
        device: str = "cpu",
        given: Mapping[str, Any] | None = None,
        crew: Alone | None = None,
    ) -> None:
        crew = crew or Alone()
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        compat.check(compat.version(), compat.NEEDED + compat.ENGINE)
        from premoe_runtime.engines.vllm import plugin
        from premoe_runtime.engines.vllm.core import VllmCore

        logging.getLogger("vllm").setLevel(logging.WARNING)
        plugin.register()
        manifest = source.manifest()
        model, _ = bare_model(source)
        limits = request_limits(model, manifest.top_k, context)
        tokenizer = load_tokenizer(source)
        eager = (given or {}).get("enforce_eager", True)
        widths = frozenset(range(1, manifest.top_k + 1)) if eager else frozenset(active) | {manifest.top_k}
        with lent(source) as pack, skeleton_folder(source) as folder:
            plan = SlotPlan.of(manifest, shape.slots, pack=pack, rows=shape.max_rows, active=() if eager else widths)
            arguments = engine_arguments(
                folder,
                plan,
                given,
                dtype=str(torch_dtype(manifest.dtype)).removeprefix("torch."),
                context=limits.context,
                max_sequences=max_sequences,
                prefill_tokens=min(prefill_tokens, limits.context),
            )
            contexts = max_sequences * (2 if parked else 1)
            self._core = VllmCore(
                arguments, context=limits.context, contexts=contexts, windows=windows(model), device=device, crew=crew
            )
        ends = eos_ids(model, tokenizer)
        sequences = CoreSequences(
            self._core,
            TokenText(tokenizer),
            ends,
            context=limits.context,
            most=max_sequences,
            rows=shape.max_rows,
            active=widths,
        )
        self._core.choose_by(sequences.named, sequences.count_prompt)
        copier = PackingCopier(self._core.slots.slots, arena, self._core.turns)
        slots, grammars = self._core.slots.slots, Grammars(tokenizer, limits.vocabulary, ends)
        super().__init__(limits, sequences, slots, copier, grammars, arena, crew)
        self._leads = crew.rank == 0

    def start(self, report: Callable[[Report], None]) -> None:
        # What steps come to is told once.
        super().start(report if self._leads else lambda each: None if isinstance(each, StepReport) else report(each))

    def close(self) -> None:
        super().close()
        if not any(thread.is_alive() for thread in self._threads):
            self._core.close()


def windows(model: PreTrainedModel) -> list[int | None]:
    """How many tokens each block looks back; None: all of them."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]
