"""The demo from beginning to end: prepare, serve, compare."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from premoe.worker.v1 import worker_pb2, worker_pb2_grpc
from premoe_servicekit.clients import blocking_channel
from premoe_servicekit.errors import rpc_errors

from premoe_local import tasks
from premoe_local.demo.prepare import Step, compare, pack_fixture, prepare
from premoe_local.demo.report import Memory, served_accuracy
from premoe_local.demo.requests import Served, ask, plan_prompts
from premoe_local.mesh import Mesh, running
from premoe_local.mesh_options import MeshOptions
from premoe_runtime.formats.budget import Budget
from premoe_runtime.formats.choices import EngineName

_HOST_SHARE = 4
"""Host memory of the demo's worker: one part in so many of all experts."""


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Everything the report is made of. ``accuracy``: full, specialist (as served), generalist, random."""

    served: tuple[Served, ...]
    memory: Memory
    accuracy: dict[str, float]


def run_demo(
    fixture: Path,
    work: Path,
    *,
    per_task: int,
    budget: str,
    step: Step,
    log: Callable[[str, str], None],
    engine: EngineName = "hf",
) -> DemoResult:
    """Run it in the empty folder ``work``. Raises what any part raises; leaves no process behind."""
    store_url = f"file://{work}/store"
    step("packing", 0.0)
    manifest = pack_fixture(fixture, store_url)
    options = MeshOptions(
        model=store_url,
        budget=budget,
        threads=1,
        engine=engine,
        context_length=512,
        max_sequences=2,
        host_memory_bytes=manifest.experts_bytes // _HOST_SHARE,
        model_name=fixture.resolve().name,
        log_level="warning",
    )
    prompts = plan_prompts(per_task)
    # The worker takes its slots from the live set when it starts.
    prepared = prepare(store_url, step)
    step("starting the services", 0.0)
    with ExitStack() as stack:
        mesh = stack.enter_context(running(options, log=log))
        log("console", f"{mesh.url}/ while prompts are sent")
        served = []
        for number, example in enumerate(prompts):
            step("sending prompts", number / len(prompts))
            mesh.check()
            served.append(ask(mesh.url, mesh.model_name, example))
        memory = _memory(mesh)
    exact = {task: [example for example in prompts if example.task == task] for task in tasks.EXACT}
    asked = Budget.parse(budget)
    equal_bytes = Budget(asked.active, min(asked.kept + options.spare, manifest.num_experts))
    accuracy = compare(prepared, exact, equal_bytes, step)
    return DemoResult(tuple(served), memory, {**accuracy, "specialist": served_accuracy(served)})


def _memory(mesh: Mesh) -> Memory:
    address = mesh.worker_addresses[0]
    with blocking_channel(address) as channel, rpc_errors(f"worker {address}"):
        residency = worker_pb2_grpc.WorkerServiceStub(channel).GetResidency(worker_pb2.GetResidencyRequest())
    return Memory(residency.total_bytes, residency.device_bytes, residency.host_bytes)
