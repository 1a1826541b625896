"""What answers at an expert store's address, and how quickly."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from grpc_health.v1 import health_pb2, health_pb2_grpc
from premoe_servicekit.clients import Timeouts, blocking_channel
from premoe_servicekit.errors import rpc_errors
from premoe_servicekit.health import SERVING
from premoe_servicekit.tls import Tls

from premoe_local.doctor.tls_files import TlsFiles
from premoe_runtime.formats.errors import NotFound, PremoeError

SERVICE = "premoe.experts.v1.ExpertStoreService"
_TIMES = 20


@dataclass(frozen=True, slots=True)
class Peer:
    """``fault`` is why nobody can be served there; ``latency`` of one call, seconds, by the median."""

    address: str
    fault: str = ""
    serving: bool = False
    is_ours: bool = True
    latency: float | None = None


def ask(address: str, files: TlsFiles | None, seconds: float) -> Peer:
    """Ask for its health, ``seconds`` a call at most."""
    try:
        tls = Tls(files.cert, files.key, files.ca, server_name=files.server_name) if files else None
        with blocking_channel(address, tls=tls, timeouts=Timeouts(unary_s=seconds)) as channel:
            return _answers(health_pb2_grpc.HealthStub(channel), address)
    except NotFound:
        return Peer(address, is_ours=False)
    except PremoeError as error:
        return Peer(address, fault=str(error))


def _answers(stub: health_pb2_grpc.HealthStub, address: str) -> Peer:
    took, status = [], 0
    for _ in range(_TIMES):
        begun = time.perf_counter()
        with rpc_errors(f"expert store {address}"):
            status = stub.Check(health_pb2.HealthCheckRequest(service=SERVICE)).status
        took.append(time.perf_counter() - begun)
    return Peer(address, serving=status == SERVING, latency=statistics.median(took[1:]))
