"""Real calls of a running mesh, for `helm test`: one line for each thing that works, an exit code for what does not.

python -m premoe_servicekit.smoke health dns:///retrieval:50051 dns:///store:50051
python -m premoe_servicekit.smoke manifest dns:///store:50051 [--model-id ID]
python -m premoe_servicekit.smoke generate dns:///workers:50051 --retrieval dns:///retrieval:50051 --model NAME

Every address that a name stands for is called. PREMOE_SMOKE_TLS_CERT, _KEY, _CA and _SERVER_NAME turn mutual TLS on;
PREMOE_SMOKE_TIMEOUT_S bounds each step, and waiting for pods that are only just starting.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from premoe.experts.v1 import experts_pb2, experts_pb2_grpc
from premoe.patterns.v1 import patterns_pb2, patterns_pb2_grpc
from premoe.worker.v1 import worker_pb2, worker_pb2_grpc

from premoe_runtime.formats.errors import InvalidInput, NotFound, PremoeError, Unavailable
from premoe_runtime.formats.manifest import Manifest
from premoe_servicekit.addresses import join
from premoe_servicekit.clients import blocking_channel
from premoe_servicekit.errors import one_line, rpc_errors
from premoe_servicekit.tls import Tls

PREFIX = "PREMOE_SMOKE_"
PAUSE_S = 0.5
MAX_TOKENS = 8

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Caller:
    """How to call: TLS files ("" for plain text), the name in peers' certificates, and seconds for each step."""

    cert: str = ""
    key: str = ""
    ca: str = ""
    server_name: str = ""
    timeout_s: float = 60.0

    @contextmanager
    def channel(self, address: str, host: str) -> Iterator[grpc.Channel]:
        """A channel to one address of ``host``. Raises InvalidInput for TLS files that are no good."""
        tls = None
        if self.cert:
            # Addresses stand in no certificate: what the name stood for must show the name.
            tls = Tls(Path(self.cert), Path(self.key), Path(self.ca), server_name=self.server_name or host)
        with blocking_channel(address, tls=tls) as channel:
            yield channel

    def insist(self, call: Callable[[], R]) -> R:
        """The call's result, tried again while the other side is Unavailable and time is left."""
        deadline = time.monotonic() + self.timeout_s
        while True:
            try:
                return call()
            except Unavailable:
                if time.monotonic() + PAUSE_S >= deadline:
                    raise
                time.sleep(PAUSE_S)


def caller_of(environment: Mapping[str, str]) -> Caller:
    """What the PREMOE_SMOKE_* variables say. Raises InvalidInput."""
    cert, key, ca = (environment.get(f"{PREFIX}TLS_{name}", "") for name in ("CERT", "KEY", "CA"))
    if bool(cert) + bool(key) + bool(ca) not in (0, 3):
        raise InvalidInput(f"{PREFIX}TLS_CERT, _KEY and _CA go together", reason="TLS_INVALID")
    seconds = environment.get(f"{PREFIX}TIMEOUT_S", "60")
    try:
        timeout_s = float(seconds)
    except ValueError:
        raise InvalidInput(f"{PREFIX}TIMEOUT_S is {seconds!r}; give seconds", reason="SETTING_INVALID") from None
    return Caller(cert, key, ca, environment.get(f"{PREFIX}TLS_SERVER_NAME", ""), timeout_s)


def addresses(target: str) -> tuple[str, tuple[str, ...]]:
    """The host of ``dns:///host:port`` or ``host:port``, and every address:port behind it.

    Raises InvalidInput for another form, Unavailable when the name stands for nothing (yet).
    """
    host, _, port = target.removeprefix("dns:///").rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit():
        raise InvalidInput(f"{target} is no host:port", reason="ADDRESS_INVALID")
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)}
    except socket.gaierror as error:
        raise Unavailable(f"{host} stands for no address: {error.strerror}", reason="NAME_UNKNOWN") from None
    return host, tuple(sorted(join(str(ip), port) for ip in found))


def check_health(caller: Caller, target: str) -> str:
    """Every replica behind ``target`` says SERVING. Raises Unavailable."""
    host, found = caller.insist(lambda: addresses(target))
    for address in found:
        with caller.channel(address, host) as channel:
            stub = health_pb2_grpc.HealthStub(channel)

            def serving(address: str = address, stub: health_pb2_grpc.HealthStub = stub) -> None:
                with rpc_errors(address):
                    answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=caller.timeout_s)
                if answer.status != health_pb2.HealthCheckResponse.SERVING:
                    raise Unavailable(f"{target} ({address}) is not serving", reason="NOT_SERVING")

            caller.insist(serving)
    return f"{target}: {len(found)} SERVING"


def read_manifest(caller: Caller, target: str, model_id: str) -> str:
    """The store hands out a whole manifest. Without ``model_id``: of its only pack, or SKIPPED."""
    host, found = caller.insist(lambda: addresses(target))
    with caller.channel(found[0], host) as channel:
        stub = experts_pb2_grpc.ExpertStoreServiceStub(channel)
        request = experts_pb2.GetManifestRequest(model_id=model_id.removeprefix("blake3:"))

        def get() -> experts_pb2.GetManifestResponse:
            with rpc_errors(f"expert store {target}"):
                return stub.GetManifest(request, timeout=caller.timeout_s)

        try:
            answer = caller.insist(get)
        except (NotFound, InvalidInput) as error:
            if model_id or error.reason not in ("MODEL_NOT_FOUND", "MODEL_AMBIGUOUS"):
                raise
            return f"{target} answers. SKIPPED: reading a manifest, because no model id is given: {one_line(error)}"
    manifest = Manifest.parse(answer.manifest)
    return f"{target}: manifest of {manifest.model_id}, {len(answer.manifest)} bytes"


def generate(caller: Caller, target: str, retrieval: str, model: str, prompt: str) -> Iterator[str]:
    """A worker probes the prompt, retrieval names its pattern, the worker answers. Without ``model``: SKIPPED."""
    if not model:
        yield "SKIPPED: retrieve and generate, because no model is named (value tests.model)"
        return
    host, found = caller.insist(lambda: addresses(target))
    address = caller.insist(lambda: _worker_of(caller, host, found, model))
    asked = worker_pb2.Prompt(text=prompt)
    with caller.channel(address, host) as channel:
        stub = worker_pb2_grpc.WorkerServiceStub(channel)
        with rpc_errors(f"worker {address}"):
            probed = stub.Probe(worker_pb2.ProbeRequest(prompt=asked), timeout=caller.timeout_s)
        choice = _retrieve(caller, retrieval, probed)
        decision = patterns_pb2.Decision.Name(choice.decision).removeprefix("DECISION_")
        yield f"{retrieval}: {decision} of task {choice.task!r}, score {choice.score:.3f}"
        if choice.decision == patterns_pb2.DECISION_REJECT:
            yield "SKIPPED: generate, because the pattern set rejects this prompt"
            return
        request = worker_pb2.GenerateRequest(
            prompt=asked, sampling=worker_pb2.Sampling(max_tokens=MAX_TOKENS), pattern=choice, model=model
        )
        with rpc_errors(f"worker {address}"):
            events = list(stub.Generate(request, timeout=caller.timeout_s))
    if not events or not events[-1].HasField("finished") or events[-1].finished.completion_tokens == 0:
        raise Unavailable(f"worker {address} ended its answer without a token", reason="ANSWER_EMPTY")
    yield f"{target}: {model} answered with {events[-1].finished.completion_tokens} tokens"


def _worker_of(caller: Caller, host: str, found: Sequence[str], model: str) -> str:
    """The address of a worker that serves ``model``. Raises Unavailable: it may still be loading."""
    served = set()
    for address in found:
        with caller.channel(address, host) as channel, rpc_errors(f"worker {address}"):
            stub = worker_pb2_grpc.WorkerServiceStub(channel)
            name = stub.GetResidency(worker_pb2.GetResidencyRequest(), timeout=caller.timeout_s).model_name
        if name == model:
            return address
        served.add(name)
    raise Unavailable(f"no worker behind {host} serves {model}; there is {', '.join(sorted(served))}")


def _retrieve(caller: Caller, target: str, probed: worker_pb2.ProbeResponse) -> worker_pb2.PatternChoice:
    host, found = caller.insist(lambda: addresses(target))
    request = patterns_pb2.RetrieveRequest(weights_id=probed.weights_id, signature=probed.signature)
    with caller.channel(found[0], host) as channel, rpc_errors(f"retrieval {target}"):
        answer = patterns_pb2_grpc.PatternServiceStub(channel).Retrieve(request, timeout=caller.timeout_s)
    return worker_pb2.PatternChoice(
        decision=answer.decision,
        pattern_id=answer.pattern_id,
        task=answer.task,
        score=answer.score,
        reason=answer.reason,
    )


def main(arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """Run one subcommand; 0, or the exit code of the error after one line on standard error."""
    options = _parser().parse_args(arguments)
    try:
        for line in _lines(caller_of(environment), options):
            print(line, flush=True)
    except PremoeError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return error.exit_code
    return 0


def _lines(caller: Caller, options: argparse.Namespace) -> Iterator[str]:
    if options.command == "health":
        for target in options.targets:
            yield check_health(caller, target)
    elif options.command == "manifest":
        yield read_manifest(caller, options.target, options.model_id)
    else:
        yield from generate(caller, options.target, options.retrieval, options.model, options.prompt)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="premoe-smoke", description="Real calls of a running mesh.")
    commands = parser.add_subparsers(dest="command", required=True)
    health = commands.add_parser("health", help="every replica says SERVING")
    health.add_argument("targets", nargs="+", metavar="TARGET")
    manifest = commands.add_parser("manifest", help="the expert store hands out a manifest")
    manifest.add_argument("target", metavar="TARGET")
    manifest.add_argument("--model-id", default="", help="id of the pack; default: the only one")
    ask = commands.add_parser("generate", help="a worker answers a prompt with the pattern that retrieval names")
    ask.add_argument("target", metavar="TARGET")
    ask.add_argument("--retrieval", required=True)
    ask.add_argument("--model", default="", help="name under which it is served; empty: SKIPPED")
    ask.add_argument("--prompt", default="Hello")
    return parser


if __name__ == "__main__":
    sys.exit(main())
