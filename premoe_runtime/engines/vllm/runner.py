"""The plug-in inside vLLM's model runners: routers in their place after loading, rows of tokens before every step."""

from __future__ import annotations

import functools
import glob
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vllm.v1.worker import cpu_model_runner, gpu_model_runner

from premoe_runtime.engines.vllm import compat
from premoe_runtime.engines.vllm.coverage import stock_router_fault
from premoe_runtime.engines.vllm.experts import SlotExperts
from premoe_runtime.engines.vllm.mass import RetainedMass
from premoe_runtime.engines.vllm.plan import ACTIVE, ROW, SlotPlan, plan_in
from premoe_runtime.engines.vllm.router import SlotRouter
from premoe_runtime.engines.vllm.rows import TokenRows
from premoe_runtime.engines.vllm.slots import PackedSlots
from premoe_runtime.engines.vllm.sources import source_of
from premoe_runtime.engines.vllm.worker import SLOTS, SlotModel
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.residency.slot_shape import SlotShape

Order = Callable[[Any, Any, Any], tuple[Sequence[str], Sequence[int]]]
"""Of runner, scheduler output and what preparing returned: requests of the step in order, and tokens of each."""


def hook_runners() -> None:
    """Wrap both model runners' methods. Runners without a plan behave as before."""
    first = gpu_model_runner.GPUModelRunner
    _hook(first, "_prepare_inputs", _order_of_first)
    _after_loading(first)
    _after_loading(cpu_model_runner.CPUModelRunner)
    if not compat.missing(compat.SECOND_RUNNER):
        from vllm.v1.worker.gpu import model_runner

        _hook(model_runner.GPUModelRunner, "prepare_inputs", _order_of_second)
        _after_loading(model_runner.GPUModelRunner)


def _hook(runner: Any, prepare: str, order: Order) -> None:
    _before_step(runner, prepare, order)
    _learning_requests(runner)


def _after_loading(runner: Any) -> None:
    inner = runner.load_model

    @functools.wraps(inner)
    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        loaded = inner(self, *args, **kwargs)
        plan = plan_in(self.vllm_config.additional_config)
        if plan is not None and not hasattr(self, SLOTS):
            setattr(self, SLOTS, slot_model(self, plan))
        return loaded

    runner.load_model = load_model


def _learning_requests(runner: Any) -> None:
    """In ``execute_model``: a step without tokens, which only says what has finished, prepares no inputs."""
    inner = runner.execute_model

    @functools.wraps(inner)
    def execute_model(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        model: SlotModel | None = getattr(self, SLOTS, None)
        if model is not None:
            model.rows.forget(scheduler_output.finished_req_ids)
            for new in scheduler_output.scheduled_new_reqs:
                extra = (new.sampling_params and new.sampling_params.extra_args) or {}
                model.rows.learn(new.req_id, extra.get(ROW, 0), extra.get(ACTIVE))
        return inner(self, scheduler_output, *args, **kwargs)

    runner.execute_model = execute_model


def _before_step(runner: Any, name: str, order: Order) -> None:
    inner = getattr(runner, name)

    @functools.wraps(inner)
    def prepare(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        prepared = inner(self, scheduler_output, *args, **kwargs)
        model: SlotModel | None = getattr(self, SLOTS, None)
        if model is not None:
            model.rows.fill(*order(self, scheduler_output, prepared))
            model.mass.clear()
        return prepared

    setattr(runner, name, prepare)


def _order_of_first(runner: Any, scheduler_output: Any, prepared: Any) -> tuple[Sequence[str], Sequence[int]]:
    # Read behind the call, which may reorder the batch.
    ids = runner.input_batch.req_ids
    return ids, [scheduler_output.num_scheduled_tokens[each] for each in ids]


def _order_of_second(runner: Any, scheduler_output: Any, prepared: Any) -> tuple[Sequence[str], Sequence[int]]:
    return prepared.req_ids, prepared.num_scheduled_tokens


def _forget_shared_memory() -> None:
    """Names of the memory by which ranks on CPUs add up: all have mapped it by now, and vLLM never takes them back."""
    if name := os.environ.get("VLLM_DIST_IDENT"):
        for path in Path("/dev/shm").glob(f"{glob.escape(name)}-*-cpushm_*"):
            path.unlink(missing_ok=True)


def slot_model(runner: Any, plan: SlotPlan) -> SlotModel:
    """Tables over a loaded model's slots, and restricted routers in it. Raises InvalidInput, and what reading does."""
    source, model = source_of(plan.pack), runner.model
    manifest = source.manifest()
    layers = sorted((each for each in model.modules() if isinstance(each, SlotExperts)), key=lambda each: each.layer)
    if [each.layer for each in layers] != list(range(len(plan.slots))):
        raise InvalidInput(
            f"vLLM's model has {len(layers)} MoE layers, the pack {len(plan.slots)}", reason="PLAN_INVALID"
        )
    # Blobs stay as they are until vLLM's own code takes them in: it casts, and knows the number formats it runs.
    _forget_shared_memory()
    ranks = layers[0].moe_config.moe_parallel_config.ep_size
    shape = SlotShape.as_stored(manifest, slots=plan.slots, max_rows=plan.rows, ranks=ranks)
    slots = PackedSlots(shape, layers)
    tokens = runner.vllm_config.scheduler_config.max_num_batched_tokens
    rows = TokenRows(tokens, slots.device, manifest.top_k, slots.breadth)
    mass = RetainedMass(manifest.router, slots, tokens)
    active = plan.active or (None if runner.model_config.enforce_eager else (manifest.top_k,))
    for module in list(model.modules()):
        experts = getattr(module, "routed_experts", None)
        if isinstance(experts, SlotExperts):
            if experts.quant_method.is_monolithic:
                raise InvalidInput(
                    f"vLLM's backend {type(experts.quant_method).__name__} routes inside its kernel, where nothing can "
                    "be restricted; choose a modular MoE backend",
                    reason="ENGINE_UNSUPPORTED",
                )
            if fault := stock_router_fault(module.router, manifest):
                raise InvalidInput(f"{fault}; use the engine hf", reason="ENGINE_UNSUPPORTED")
            # Kernels for CPUs read no map of experts.
            local = experts.share if ranks > 1 and slots.device.type == "cpu" else None
            module.router = SlotRouter(module.router, experts.layer, manifest.router, slots, rows, mass, active, local)
    return SlotModel(source, slots, rows, mass)
