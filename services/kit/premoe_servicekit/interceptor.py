"""What happens around every RPC of our own services: trace, admission, deadline, errors. Health and reflection
are left alone.

Handlers are ``async def`` (unary) or async generators (server streams). Streams are written from inside the wrapper,
so that a cancelled RPC closes its generator at once and in the same task, not when the garbage collector comes by.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeAlias, cast

import grpc
from opentelemetry.trace import Span

from premoe_runtime.formats.errors import PremoeError
from premoe_servicekit import deadlines, telemetry
from premoe_servicekit.errors import from_rpc_error, one_line, status_code, to_status
from premoe_servicekit.roles import Admission

log = logging.getLogger(__name__)

# gRPC hands messages of any type through; their types are the handlers' business.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Unary: TypeAlias = "Callable[[Any, Context], Awaitable[Any]]"
Stream: TypeAlias = "Callable[[Any, Context], AsyncGenerator[Any, None]]"

_LEFT_ALONE = ("/grpc.health.", "/grpc.reflection.")


class RpcInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler in ``rpc_scope``, with ``admission`` for callers that it admits."""

    def __init__(self, admission: Admission | None = None) -> None:
        self._admission = admission

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(_LEFT_ALONE):
            return handler
        if handler.unary_unary is not None and inspect.iscoroutinefunction(handler.unary_unary):
            return grpc.unary_unary_rpc_method_handler(
                _unary(method, self._admission, cast(Unary, handler.unary_unary)),
                handler.request_deserializer,
                handler.response_serializer,
            )
        if handler.unary_stream is not None and inspect.isasyncgenfunction(handler.unary_stream):
            return grpc.unary_stream_rpc_method_handler(
                _stream(method, self._admission, cast(Stream, handler.unary_stream)),
                handler.request_deserializer,
                handler.response_serializer,
            )
        # What is left is generated code that answers UNIMPLEMENTED.
        return handler


def _unary(method: str, admission: Admission | None, inner: Unary) -> Unary:
    async def unary(request: Any, context: Context) -> Any:
        async with rpc_scope(method, context, admission):
            return await inner(request, context)

    return unary


def _stream(method: str, admission: Admission | None, inner: Stream) -> Unary:
    async def stream(request: Any, context: Context) -> None:
        async with rpc_scope(method, context, admission), aclosing(inner(request, context)) as responses:
            async for response in responses:
                await context.write(response)

    return stream


@asynccontextmanager
async def rpc_scope(method: str, context: Context, admission: Admission | None = None) -> AsyncIterator[None]:
    """Trace the RPC, admit its caller, bound its work by the caller's deadline, turn what it raises into a status."""
    span = telemetry.start_server_span(method, context.invocation_metadata() or ())
    left = context.time_remaining()
    failure: grpc.Status | None = None
    try:
        if admission is not None:
            admission.enter(method, context.auth_context())
        with deadlines.deadline(left):
            yield
    except asyncio.CancelledError:
        expired = left is not None and context.time_remaining() <= 0
        telemetry.end_rpc_span(
            span, grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED, server=True
        )
        raise
    except grpc.aio.AbortError:
        telemetry.end_rpc_span(span, _code_of(context), server=True)
        raise
    except Exception as error:
        failure = _failure(method, span, error)
    else:
        telemetry.end_rpc_span(span, grpc.StatusCode.OK, server=True)
    if failure is not None:
        await context.abort_with_status(failure)


def _failure(method: str, span: Span, error: Exception) -> grpc.Status:
    """The status of an exception, noted in the span; what nobody expected is logged in full and told in short."""
    if isinstance(error, grpc.RpcError):
        error = from_rpc_error(error, peer="a server behind this one")
    if not isinstance(error, PremoeError):
        log.error("%s failed: %s", method.lstrip("/"), one_line(error), exc_info=error)
        span.record_exception(error)
        error = PremoeError(f"internal error ({type(error).__name__}); the server's log has the trace")
    code = status_code(error)
    span.set_attribute("error.type", error.reason)
    telemetry.end_rpc_span(span, code, server=True, message=one_line(error))
    return to_status(error)


def _code_of(context: Context) -> grpc.StatusCode:
    """The code that a handler aborted with; gRPC keeps it as a number."""
    number: object = context.code()
    return next((code for code in grpc.StatusCode if number in (code, code.value[0])), grpc.StatusCode.UNKNOWN)
