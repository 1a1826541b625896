"""Errors across the wire: PremoeError to ``google.rpc.Status`` on the server, and back on the client.

Code branches on the class and the reason (``ErrorInfo.reason``, domain ``premoe.dev``), never on the message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from premoe_runtime.formats.errors import (
    Conflict,
    CorruptData,
    Exhausted,
    Forbidden,
    InvalidInput,
    NotFound,
    PremoeError,
    Unavailable,
)

DOMAIN = "premoe.dev"
DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
CANCELLED = "CANCELLED"

_CODES: tuple[tuple[type[PremoeError], grpc.StatusCode], ...] = (
    (InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (Conflict, grpc.StatusCode.FAILED_PRECONDITION),
    (CorruptData, grpc.StatusCode.DATA_LOSS),
    (Unavailable, grpc.StatusCode.UNAVAILABLE),
    (Exhausted, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (Forbidden, grpc.StatusCode.PERMISSION_DENIED),
)
_CLASSES: dict[grpc.StatusCode, type[PremoeError]] = {
    **{code: kind for kind, code in _CODES},
    grpc.StatusCode.OUT_OF_RANGE: InvalidInput,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.DEADLINE_EXCEEDED: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,
}
_RETRY_AFTER_SECONDS = 1
_RETRY_HELPS = frozenset({"QUEUE_FULL"})
_REASON_LIMIT = 63


def status_code(error: PremoeError) -> grpc.StatusCode:
    """The status code of an error; an Unavailable whose reason is DEADLINE_EXCEEDED keeps that code."""
    if error.reason == DEADLINE_EXCEEDED:
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


def to_status(error: PremoeError) -> grpc.Status:
    """The error as a gRPC status with ErrorInfo, and RetryInfo when the same request may work a moment later."""
    code = status_code(error)
    details = [error_details_pb2.ErrorInfo(reason=error.reason[:_REASON_LIMIT], domain=DOMAIN)]
    if code is grpc.StatusCode.UNAVAILABLE or error.reason in _RETRY_HELPS:
        delay = duration_pb2.Duration(seconds=_RETRY_AFTER_SECONDS)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        holder = any_pb2.Any()
        holder.Pack(detail)
        packed.append(holder)
    status: grpc.Status = rpc_status.to_status(
        status_pb2.Status(code=code.value[0], message=one_line(error), details=packed)
    )
    return status


def from_rpc_error(error: grpc.RpcError, *, peer: str = "the server") -> PremoeError:
    """The PremoeError that a failed call stands for; ``peer`` names the other side in messages of the transport."""
    code = error.code() if isinstance(error, grpc.Call | grpc.aio.AioRpcError) else grpc.StatusCode.UNKNOWN
    details = (error.details() if isinstance(error, grpc.Call | grpc.aio.AioRpcError) else str(error)) or ""
    kind = _CLASSES.get(code, PremoeError)
    reason = _reason(error)
    if reason is not None:
        return kind(details, reason=reason)
    if code is grpc.StatusCode.UNAVAILABLE:
        return Unavailable(f"{peer} does not answer: {_short(details)}", reason="UNAVAILABLE")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Unavailable(f"{peer} did not answer in time", reason=DEADLINE_EXCEEDED)
    if code is grpc.StatusCode.CANCELLED:
        return Unavailable(f"{peer} ended the call: {_short(details)}", reason=CANCELLED)
    return kind(f"{peer}: {_short(details) or code.name}", reason=code.name)


def retry_after(error: PremoeError) -> float | None:
    """Seconds after which the same call may work, when the status behind ``error`` says so (RetryInfo)."""
    for detail in _details(error.__cause__):
        info = error_details_pb2.RetryInfo()
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info):
            return float(info.retry_delay.ToTimedelta().total_seconds())
    return None


@contextmanager
def rpc_errors(peer: str) -> Iterator[None]:
    """Raise the PremoeError behind every RpcError inside; works around ``await`` and blocking calls alike.

    A call whose channel was closed under it is Unavailable: gRPC would look as if the caller had been cancelled.
    """
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error, peer=peer) from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise Unavailable(f"the connection to {peer} was closed", reason=CANCELLED) from error


def one_line(error: BaseException) -> str:
    """The message without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def _reason(error: grpc.RpcError) -> str | None:
    """The ErrorInfo reason of our domain; ``None`` when the transport or a foreign server made the status."""
    for detail in _details(error):
        info = error_details_pb2.ErrorInfo()
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info) and info.domain == DOMAIN:
            reason: str = info.reason
            return reason
    return None


def _details(error: BaseException | None) -> Sequence[any_pb2.Any]:
    """The details of a failed call's ``google.rpc.Status``; none where the transport made the status."""
    try:
        status = rpc_status.from_call(error)
    except (ValueError, AttributeError):
        return ()
    return () if status is None else status.details


def _short(details: str) -> str:
    """The transport's text, cut to one readable line."""
    text = " ".join(details.split())
    return text if len(text) <= 200 else text[:197] + "..."
