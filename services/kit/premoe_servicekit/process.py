"""A process from start to exit: settings, logs, telemetry, signals, the ready line, one line for an error.

def main() -> None:
    run_process("premoe-retrieval", RetrievalSettings, serve)

async def serve(settings: RetrievalSettings, process: Process) -> None:
    server = RpcServer([...], settings)
    await server.start()
    ...
    await process.serve([server], address=server.address)
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NoReturn

from premoe_runtime.formats.errors import PremoeError
from premoe_servicekit.errors import one_line
from premoe_servicekit.logs import setup_logging
from premoe_servicekit.metrics import Metrics, MetricsServer
from premoe_servicekit.probes import ProbeServer
from premoe_servicekit.server import RpcServer, Stoppable, serve_until, stop_all
from premoe_servicekit.settings import ProcessSettings, S, ServerSettings, load_settings
from premoe_servicekit.telemetry import setup_telemetry
from premoe_servicekit.termination import failure, write_last_words
from premoe_servicekit.tls import Tls, tls_of


class Process:
    """Signals, health and metrics ports and the ready line of the running process."""

    def __init__(self, service: str, settings: ProcessSettings, tls: Tls | None) -> None:
        self.service = service
        self.tls = tls
        """Mutual TLS for every server and channel of the process; None for plain text."""
        self._drain_delay_s = 0.0
        self.metrics = Metrics()
        """What the process counts; served where the settings say so, counted in any case."""
        self._probes: ProbeServer | None = None
        self._metrics_server: MetricsServer | None = None
        if isinstance(settings, ServerSettings):
            self._drain_delay_s = settings.drain_delay_s
            self._probes = None if settings.health_port is None else ProbeServer(settings, tls)
            if settings.metrics_port is not None:
                self._metrics_server = MetricsServer(self.metrics, settings)
        self.stopped = asyncio.Event()
        """Set by the first SIGTERM or SIGINT, and by ``fail``."""
        self.forced = asyncio.Event()
        """Set by the second one."""
        self.failure: PremoeError | None = None
        """Why the process ends, when that is nobody's wish."""
        self.serving = False
        self._side_addresses: dict[str, str] = {}
        """Of the health and metrics ports, as the ready line names them."""

    def listen(self) -> None:
        """Take SIGTERM and SIGINT over from Python."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)

    def fail(self, error: PremoeError) -> None:
        """End the process with ``error``: health turns NOT_SERVING at once, then all is as after a signal."""
        self.failure = self.failure or error
        self.stopped.set()

    def ready(self, **fields: str | int) -> None:
        """Print the one line on standard output that says that we serve, and where."""
        print(json.dumps({"ready": True, "service": self.service, **fields}), flush=True)

    @asynccontextmanager
    async def side_ports(self) -> AsyncIterator[None]:
        """Answer on the health and metrics ports, from before the start to after the stop of the servers."""
        async with AsyncExitStack() as stack:
            if self._metrics_server is not None:
                self.metrics.add_process()
                self._side_addresses["metrics"] = await self._metrics_server.start()
                stack.push_async_callback(self._metrics_server.stop)
            if self._probes is not None:
                self._side_addresses["health"] = await self._probes.start()
                stack.push_async_callback(self._probes.stop)
            yield

    async def serve(
        self,
        servers: Sequence[RpcServer],
        *,
        serving: bool = True,
        beside: Sequence[Stoppable] = (),
        **fields: str | int,
    ) -> None:
        """Turn health SERVING, print the ready line, and serve until a signal; then stop gracefully.

        The first server is the one that the health port answers for. With ``serving=False`` its health is left to the
        caller. ``beside``: what else has requests to end, at the same time.
        """
        self.serving = True
        if self._probes is not None:
            self._probes.attach(servers[0])
        for server in servers:
            if serving:
                await server.set_serving(True)
        self.ready(**fields, **self._side_addresses)
        await serve_until(self.stopped, servers, self.forced, drain_delay_s=self._drain_delay_s, beside=beside)

    def _on_signal(self) -> None:
        (self.forced if self.stopped.is_set() else self.stopped).set()


def run_process(
    program: str,
    settings_class: type[S],
    serve: Callable[[S, Process], Awaitable[None]],
    arguments: Sequence[str] | None = None,
) -> NoReturn:
    """Run ``serve`` under the settings of flags and environment, and exit: 0, or the error's code after one line."""
    service = program.removeprefix("premoe-")
    # Each failed handshake (a port scanner, a plain-text client) would be a line of gRPC's own on standard error.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        settings = load_settings(settings_class, program, arguments)
        setup_logging(service, level=settings.log_level, log_format=settings.log_format)
        tls = tls_of(settings)
        telemetry = setup_telemetry(program)
        try:
            asyncio.run(_run(service, settings, tls, serve))
        finally:
            telemetry.shutdown()
    except PremoeError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        write_last_words(failure(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        # Python prints the traceback and ends with 1.
        write_last_words(failure(error))
        raise
    sys.exit(0)


async def _run(service: str, settings: S, tls: Tls | None, serve: Callable[[S, Process], Awaitable[None]]) -> None:
    """Run ``serve``; a signal that comes before it serves ends it at once, later ones stop it gracefully."""
    process = Process(service, settings, tls)
    process.listen()

    async def run() -> None:
        async with process.side_ports():
            await serve(settings, process)

    running = asyncio.ensure_future(run())

    async def end_early() -> None:
        await process.stopped.wait()
        if not process.serving:
            running.cancel()

    early = asyncio.create_task(end_early())
    try:
        await running
    except asyncio.CancelledError:
        if not process.stopped.is_set():
            raise
    finally:
        early.cancel()
        await stop_all()
    if process.failure is not None:
        raise process.failure
