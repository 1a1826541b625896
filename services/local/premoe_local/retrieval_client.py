"""The retrieval service as commands call it, with the options that say where it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from premoe.patterns.v1 import patterns_pb2 as pb
from premoe.patterns.v1 import patterns_pb2_grpc
from premoe_servicekit.clients import Timeouts, blocking_channel
from premoe_servicekit.errors import rpc_errors
from premoe_servicekit.tls import Tls

from premoe_runtime.formats.errors import InvalidInput

TIMEOUT_S = 600.0
"""A large set takes a while to be indexed."""
_FILE = click.Path(path_type=Path, dir_okay=False)


def tls_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--tls-cert`, `--tls-key`, `--tls-ca` and `--tls-server-name`, handed over as one `tls: Tls | None`."""

    def with_tls(
        *arguments: Any,
        tls_cert: Path | None,
        tls_key: Path | None,
        tls_ca: Path | None,
        tls_server_name: str,
        **options: Any,
    ) -> Any:
        if tls_cert is None and tls_key is None and tls_ca is None:
            return command(*arguments, tls=None, **options)
        if tls_cert is None or tls_key is None or tls_ca is None:
            raise InvalidInput("--tls-cert, --tls-key and --tls-ca go together", reason="TLS_INVALID")
        return command(*arguments, tls=Tls(tls_cert, tls_key, tls_ca, server_name=tls_server_name), **options)

    with_tls.__name__, with_tls.__doc__ = command.__name__, command.__doc__
    with_tls.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    for option in (
        click.option("--tls-server-name", default="", help="Name in its certificate where that is not its address."),
        click.option("--tls-ca", type=_FILE, help="PEM file of the authorities that its certificate comes from."),
        click.option("--tls-key", type=_FILE, help="PEM file of the certificate's key."),
        click.option("--tls-cert", type=_FILE, help="PEM file of an administrator's certificate, for mutual TLS."),
    ):
        option(with_tls)
    return with_tls


index_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--retrieval", "address", metavar="HOST:PORT", help="Retrieval service whose index is to forget the sets, too."
)


class Retrieval:
    """One retrieval service. Every method raises what it answers, and Unavailable when it does not."""

    def __init__(self, stub: patterns_pb2_grpc.PatternServiceStub, peer: str) -> None:
        self._stub = stub
        self._peer = peer

    def publish(self, set_id: str) -> tuple[int, bool]:
        """Index a set; returns its exemplars, and whether they were there before."""
        with rpc_errors(self._peer):
            answer = self._stub.PublishSet(pb.PublishSetRequest(set_id=set_id))
        return answer.exemplars, answer.already

    def delete(self, set_id: str) -> bool:
        """Take a set out of the index; False when it was not there."""
        with rpc_errors(self._peer):
            return bool(self._stub.DeleteSet(pb.DeleteSetRequest(set_id=set_id)).existed)

    def signatures(self, weights_id: str) -> tuple[list[pb.RecordedSignature], int]:
        """All recorded ones of these weights, oldest first, and how many are kept at most."""
        found: list[pb.RecordedSignature] = []
        while True:
            after = found[-1].number if found else 0
            with rpc_errors(self._peer):
                page = self._stub.ListSignatures(pb.ListSignaturesRequest(weights_id=weights_id, after=after))
            if not page.signatures:
                return found, page.capacity
            found += page.signatures


def forget(address: str | None, tls: Tls | None, set_ids: Iterable[str]) -> None:
    """Take sets out of the index of the service at ``address``, if one is given. Raises Conflict for a live set.

    Before they go from the store: points of a set that is nowhere else can be named by nobody.
    """
    if address is not None:
        with retrieval(address, tls) as service:
            for set_id in set_ids:
                service.delete(set_id)


@contextmanager
def retrieval(address: str, tls: Tls | None) -> Iterator[Retrieval]:
    """The service at ``host:port``."""
    with blocking_channel(address, tls=tls, timeouts=Timeouts(unary_s=TIMEOUT_S)) as channel:
        yield Retrieval(patterns_pb2_grpc.PatternServiceStub(channel), f"retrieval {address}")
