"""The whole mesh on one machine: retrieval, expert store, workers and gateway as child processes.

with running(MeshOptions(model="file:///tmp/store", budget="4/16")) as mesh:
    print(mesh.url)          # OpenAI HTTP
    mesh.watch()             # until a child stops
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from premoe_gateway.access.keys import read_keys
from premoe_servicekit.server import check_port_is_free
from premoe_worker.limits import check_limits

from premoe_local.doctor.facts.machine import look
from premoe_local.mesh_options import MeshOptions, store_flags, worker_environment, worker_flags
from premoe_local.processes import Child, LogSink, wait_serving
from premoe_local.revival import Revival
from premoe_runtime.formats.errors import InvalidInput, NotFound
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.formats.pattern import Pattern
from premoe_runtime.formats.pattern_set import PatternSet
from premoe_runtime.offline.patterns.library import live_set_id, live_weights, store_of
from premoe_runtime.offline.sizing.bill import settled_context
from premoe_runtime.offline.sizing.shape import shape_of
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.storage import Store

START_TIMEOUT_S = 60.0
MODEL_TIMEOUT_S = 600.0
QDRANT_TIMEOUT_S = 10.0
_CHILD_GRACE_S = "5"
_WATCH_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Mesh:
    """A running mesh. Addresses are ``host:port``."""

    url: str
    manifest: Manifest
    gateway: Child
    retrieval: Child
    store: Child
    workers: tuple[Child, ...]
    gateway_address: str
    retrieval_address: str
    store_address: str
    worker_addresses: tuple[str, ...]
    admin_addresses: tuple[str, ...]
    model_name: str
    live: PatternSet | None = None
    """The live pattern set at the start."""
    revivals: tuple[Revival, ...] = ()
    """Of workers of which there are several: the others serve while a dead one is started again."""

    @property
    def children(self) -> tuple[Child, ...]:
        return (self.gateway, *self.workers, self.store, self.retrieval)

    @property
    def metrics(self) -> Mapping[str, str]:
        """Where each process serves its metrics, by its name; empty unless asked for."""
        told = {child.name: child.wait_ready(START_TIMEOUT_S).get("metrics") for child in self.children}
        return {name: address for name, address in told.items() if address is not None}

    def check(self) -> None:
        """Raise what a child stopped with, in one line, when it is not started again."""
        revived = [revival.child for revival in self.revivals]
        for child in self.children:
            if child not in revived:
                child.check()
        for revival in self.revivals:
            revival.tend()

    def watch(self) -> None:
        """Block until ``check`` raises."""
        while True:
            self.check()
            time.sleep(_WATCH_POLL_S)


@contextmanager
def running(
    options: MeshOptions, *, log: LogSink = lambda name, line: None, step: Callable[[str], None] = lambda text: None
) -> Iterator[Mesh]:
    """Start the mesh, hand it out once everything serves, and stop every child at the end, whatever happened.

    ``log`` receives the children's lines, ``step`` what is being waited for. Raises what is wrong with the options
    before any process is started, and what a child ended with, or Unavailable, when it does not come up.
    """
    step("checking")
    root, manifest, live = _check(options)
    if live is None:
        options = replace(options, on_unknown="full")
    with ExitStack() as stack:
        yield replace(_start(options, root, manifest, log, step, stack), live=live)


def _check(options: MeshOptions) -> tuple[str, Manifest, PatternSet | None]:
    """Everything that can be known to fail without waiting for a process.

    Returns the store root, the manifest and the live set.
    """
    if options.workers < 1:
        raise InvalidInput("at least one worker is needed", reason="WORKERS_INVALID")
    check_port_is_free(options.host, options.port)
    if options.keys_file:
        read_keys(Path(options.keys_file))
    reader = open_pack(options.model)
    manifest = reader.manifest()
    limits = check_limits(
        manifest,
        budget=options.budget,
        generalist_budget=options.generalist_budget,
        slots=options.slots,
        spare=options.spare,
        on_unknown=options.on_unknown,
        allocation=options.allocation,
    )
    if options.context_length is not None:
        settled_context(shape_of(manifest, reader.read_file("skeleton/config.json")), options.context_length)
    if options.device != "cpu":
        # Torch takes seconds, which only those wait for who need it checked.
        from premoe_runtime.engines.hf.device import device_kind

        device_kind(options.device)
    store = store_of(options.model)
    live = _live_set(store, manifest.weights_id)
    has_all_slots = min(limits.slots) == manifest.num_experts
    if live is None and options.on_unknown != "full" and not (has_all_slots and options.on_unknown == "generalist"):
        found = "no live pattern set" + (" of this model's weights, only of others" if live_weights(store) else "")
        raise NotFound(
            f"{store.url} has {found}, so no request could be answered; make one with `premoe profile` and "
            "`premoe patterns build … --set-live`, or serve the full model with `--on-unknown full`",
            reason="NO_LIVE_SET",
        )
    if options.qdrant_url:
        asyncio.run(_ask_qdrant(options.qdrant_url, live))
    return store.url, manifest, live


def _live_set(store: Store, weights_id: str) -> PatternSet | None:
    """The live set, each of its patterns read once. Raises NotFound and CorruptData for what could not be served."""
    set_id = live_set_id(store, weights_id)
    if set_id is None:
        return None
    try:
        found = PatternSet.load(store.get, set_id)
        for member in found.members:
            Pattern.load(store.get, member.pattern_id)
    except NotFound as error:
        raise NotFound(
            f"the live pattern set {set_id[:16]} is not whole: {error}; make another one live "
            "(`premoe patterns set-live`), or build it again",
            reason="SET_NOT_FOUND",
        ) from error
    return found


async def _ask_qdrant(url: str, live: PatternSet | None) -> None:
    """Raise Unavailable when no Qdrant server answers: the retrieval service would go on asking it."""
    # Imported here: the client costs half a second.
    from premoe_retrieval.adapters.qdrant import QdrantIndex

    index = QdrantIndex(url, timeout_s=QDRANT_TIMEOUT_S)
    try:
        await index.count("" if live is None else live.set_id, 1 if live is None else live.dimension)
    finally:
        await index.close()


def _start(
    options: MeshOptions, root: str, manifest: Manifest, log: LogSink, step: Callable[[str], None], stack: ExitStack
) -> Mesh:
    def child(name: str, module: str, *arguments: str, environment: dict[str, str] | None = None) -> Child:
        metrics = ("--metrics-port", "0") if options.metrics else ()
        common = ("--log-level", options.log_level, "--grace-s", _CHILD_GRACE_S, *metrics)
        started = Child(name, module, (*arguments, *common), log, environment or {})
        stack.callback(started.stop)
        return started

    step("starting retrieval and expert store")
    qdrant = ("--qdrant", options.qdrant_url) if options.qdrant_url else ()
    recording = ("--record-signatures", str(options.record_signatures)) if options.record_signatures else ()
    retrieval = child("retrieval", "premoe_retrieval.cli", "--store-url", root, *qdrant, *recording)
    store = child("store", "premoe_expert_store.cli", *store_flags(options, manifest, root, look().free_bytes))
    retrieval_address = retrieval.wait_ready(START_TIMEOUT_S)["address"]
    store_address = store.wait_ready(START_TIMEOUT_S)["address"]
    for service, address in ((retrieval, retrieval_address), (store, store_address)):
        wait_serving(service, address, START_TIMEOUT_S)

    step("loading the model")
    flags = worker_flags(options, manifest, store_address, retrieval_address)
    names = ["worker"] if options.workers == 1 else [f"worker-{number}" for number in range(options.workers)]
    workers = tuple(child(name, "premoe_worker.cli", *flags, environment=worker_environment(options)) for name in names)
    ready = [worker.wait_ready(MODEL_TIMEOUT_S) for worker in workers]
    for worker, fields in zip(workers, ready, strict=True):
        wait_serving(worker, fields["address"], MODEL_TIMEOUT_S)

    step("starting the gateway")
    addresses = tuple(fields["address"] for fields in ready)
    gateway = child(
        "gateway",
        "premoe_gateway.cli",
        *("--workers", ",".join(addresses), "--retrieval", retrieval_address),
        *("--http-host", options.host, "--http-port", str(options.port), "--on-unknown", options.on_unknown),
        *(("--keys-file", options.keys_file) if options.keys_file else ()),
        *(() if options.max_body_bytes is None else ("--max-body-bytes", str(options.max_body_bytes))),
        *(("--cors-origins", ",".join(options.cors_origins)) if options.cors_origins else ()),
        *(("--console",) if options.console else ()),
    )
    fields = gateway.wait_ready(START_TIMEOUT_S)
    wait_serving(gateway, fields["address"], START_TIMEOUT_S)
    return Mesh(
        url=fields["url"],
        manifest=manifest,
        gateway=gateway,
        retrieval=retrieval,
        store=store,
        workers=workers,
        gateway_address=fields["address"],
        retrieval_address=retrieval_address,
        store_address=store_address,
        worker_addresses=addresses,
        admin_addresses=tuple(each["admin"] for each in ready),
        model_name=ready[0]["model"],
        revivals=tuple(Revival(worker, _same_ports(fields), log) for worker, fields in zip(workers, ready, strict=True))
        if len(workers) > 1
        else (),
    )


def _same_ports(ready: Mapping[str, str]) -> tuple[str, ...]:
    """Flags that put a worker where others know it."""
    ports = {"--port": ready["address"], "--admin-port": ready["admin"]}
    if "metrics" in ready:
        ports["--metrics-port"] = ready["metrics"]
    return tuple(part for flag, address in ports.items() for part in (flag, address.rpartition(":")[2]))
