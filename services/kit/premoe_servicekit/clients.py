"""Channels to other PreMoE processes: keep-alive, retries of idempotent RPCs, deadlines and trace context.

``channel`` is for asyncio, ``blocking_channel`` for threads; both take ``host:port`` and behave alike.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import grpc
from opentelemetry.trace import Span

from premoe_servicekit import deadlines, telemetry
from premoe_servicekit.rotation import BlockingRotatingChannel, RotatingChannel
from premoe_servicekit.tls import Tls

UNARY_TIMEOUT_S = 30.0
STREAM_TIMEOUT_S = 600.0
MAX_MESSAGE_BYTES = 16 << 20

IDEMPOTENT: Mapping[str, tuple[str, ...]] = {
    "premoe.patterns.v1.PatternService": (
        "Retrieve",
        "PublishSet",
        "SetLive",
        "GetPattern",
        "ListPatterns",
        "DeleteSet",
        "ListSignatures",
    ),
    "premoe.experts.v1.ExpertStoreService": (
        "GetManifest",
        "Resolve",
        "Prefetch",
        "Renew",
        "Release",
        "WatchStore",
        "Fetch",
        "FetchFile",
    ),
    "premoe.worker.v1.WorkerService": ("Probe", "Tokenize", "Detokenize", "GetResidency"),
    "premoe.worker.v1.WorkerAdminService": ("LoadPattern", "UnloadPattern", "Drain", "CheckIntegrity"),
}
"""RPCs that may be sent twice; as the protos say. A stream is retried only while nothing of it has arrived."""

Options: TypeAlias = Sequence[tuple[str, Any]]  # gRPC's option values are strings and numbers


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Deadlines of calls that give none, in seconds. What is left of an incoming RPC's deadline bounds all calls."""

    unary_s: float = UNARY_TIMEOUT_S
    stream_s: float = STREAM_TIMEOUT_S


def channel(
    address: str, *, tls: Tls | None = None, server_name: str = "", timeouts: Timeouts = Timeouts()
) -> grpc.aio.Channel:
    """An asyncio channel to ``host:port``, plain or under mutual TLS that follows its files.

    ``server_name`` is the name in this peer's certificate where neither the address nor the TLS settings say it.
    Connects on first use; close it with ``await channel.close()``.
    """
    interceptors = [_AioUnary(address, timeouts.unary_s), _AioStream(address, timeouts.stream_s)]
    if tls is None:
        return grpc.aio.insecure_channel(address, options=channel_options(), interceptors=interceptors)
    options = channel_options(tls.server_name or server_name)
    return RotatingChannel(
        tls, lambda credentials: grpc.aio.secure_channel(address, credentials, options, interceptors=interceptors)
    )


def blocking_channel(address: str, *, tls: Tls | None = None, timeouts: Timeouts = Timeouts()) -> grpc.Channel:
    """A channel to ``host:port`` for threads; safe to share between them. See ``deadlines.carried``."""
    interceptor = _Blocking(address, timeouts)
    if tls is None:
        return grpc.intercept_channel(grpc.insecure_channel(address, options=channel_options()), interceptor)
    options = channel_options(tls.server_name)
    return BlockingRotatingChannel(
        tls,
        lambda credentials: grpc.intercept_channel(grpc.secure_channel(address, credentials, options), interceptor),
    )


def channel_options(server_name: str = "") -> Options:
    """Keep-alive a little above what our servers permit, quick reconnects, the retry policy, the peers' name.

    Never through a proxy that the environment names for the way out: our peers are on this machine or in this cluster.
    """
    named = (("grpc.ssl_target_name_override", server_name),) if server_name else ()
    return (
        *named,
        ("grpc.enable_http_proxy", 0),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 500),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # A name without addresses yet is asked for again soon; gRPC's own pause is half a minute.
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.enable_retries", 1),
        ("grpc.service_config", service_config()),
    )


def service_config() -> str:
    """The gRPC service config: calls go to all addresses of a name in turn; idempotent ones are tried four times.

    A server that is stopping answers UNAVAILABLE, or CANCELLED to what arrives just as it says goodbye. When one of
    several goes, all calls to it fail at once, so the throttle leaves room for a burst.
    """
    names = [{"service": service, "method": method} for service, methods in IDEMPOTENT.items() for method in methods]
    return json.dumps(
        {
            "loadBalancingConfig": [{"round_robin": {}}],
            "methodConfig": [
                {
                    "name": names,
                    "retryPolicy": {
                        "maxAttempts": 4,
                        "initialBackoff": "0.1s",
                        "maxBackoff": "1s",
                        "backoffMultiplier": 2,
                        "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
                    },
                }
            ],
            "retryThrottling": {"maxTokens": 100, "tokenRatio": 1},
        }
    )


class _AioUnary(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, address: str, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s

    async def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[grpc.aio.UnaryUnaryCall[Any, Any]]],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> grpc.aio.UnaryUnaryCall[Any, Any]:
        span, details = _start(client_call_details, self._address, self._timeout_s)
        call = await continuation(details, request)
        try:
            code = await call.code()
        except asyncio.CancelledError:
            call.cancel()
            telemetry.end_rpc_span(span, grpc.StatusCode.CANCELLED, server=False)
            raise
        telemetry.end_rpc_span(span, code, server=False, message=await call.details())
        return call


class _AioStream(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, address: str, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s

    async def intercept_unary_stream(
        self,
        continuation: Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[grpc.aio.UnaryStreamCall[Any, Any]]],
        client_call_details: grpc.aio.ClientCallDetails,
        request: Any,
    ) -> grpc.aio.UnaryStreamCall[Any, Any]:
        span, details = _start(client_call_details, self._address, self._timeout_s)
        call = await continuation(details, request)
        call.add_done_callback(lambda done: telemetry.end_rpc_span(span, _final_code(done), server=False))
        return call


def _start(
    details: grpc.aio.ClientCallDetails, address: str, default_s: float
) -> tuple[Span, grpc.aio.ClientCallDetails]:
    method = details.method.decode() if isinstance(details.method, bytes) else details.method
    span, carried = telemetry.start_client_span(method, address)
    metadata = grpc.aio.Metadata(*(details.metadata or ()), *carried)
    timeout = deadlines.bounded(default_s if details.timeout is None else details.timeout)
    return span, grpc.aio.ClientCallDetails(
        details.method, timeout, metadata, details.credentials, details.wait_for_ready
    )


def _final_code(call: grpc.aio.Call) -> grpc.StatusCode:
    """The code of a finished call. ``code()`` is a coroutine that no longer has anything to wait for."""
    coroutine = call.code()
    try:
        coroutine.send(None)
    except StopIteration as stop:
        code: grpc.StatusCode = stop.value
        return code
    coroutine.close()
    return grpc.StatusCode.UNKNOWN


class _Details(NamedTuple):
    """grpc.ClientCallDetails has no constructor of its own."""

    method: str
    timeout: float | None
    metadata: Sequence[tuple[str, str | bytes]] | None
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None


class _Blocking(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    def __init__(self, address: str, timeouts: Timeouts) -> None:
        self._address = address
        self._timeouts = timeouts

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        span, details = self._start(client_call_details, self._timeouts.unary_s)
        call = continuation(details, request)
        # Not ``call.code()``, which would wait: the caller may have asked for a future.
        call.add_done_callback(
            lambda done: telemetry.end_rpc_span(span, done.code(), server=False, message=done.details() or "")
        )
        return call

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        span, details = self._start(client_call_details, self._timeouts.stream_s)
        call = continuation(details, request)
        call.add_done_callback(lambda done: telemetry.end_rpc_span(span, done.code(), server=False))
        return call

    def _start(self, details: Any, default_s: float) -> tuple[Span, _Details]:
        span, carried = telemetry.start_client_span(details.method, self._address)
        timeout = deadlines.bounded(default_s if details.timeout is None else details.timeout)
        return span, _Details(
            method=details.method,
            timeout=timeout,
            metadata=[*(details.metadata or ()), *carried],
            credentials=details.credentials,
            wait_for_ready=details.wait_for_ready,
            compression=details.compression,
        )
