"""Options of commands that call the retrieval service; the client itself is imported when it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from premoe_runtime.formats.errors import InvalidInput

if TYPE_CHECKING:
    from premoe_servicekit.tls import Tls

_FILE = click.Path(path_type=Path, dir_okay=False)


def _read(cert: Path, key: Path, ca: Path, server_name: str) -> Tls:
    from premoe_servicekit.tls import Tls

    return Tls(cert, key, ca, server_name=server_name)


def tls_options(
    command: Callable[..., Any], make: Callable[[Path, Path, Path, str], object] = _read
) -> Callable[..., Any]:
    """`--tls-cert`, `--tls-key`, `--tls-ca` and `--tls-server-name`, handed over as one `tls: Tls | None`.

    ``make`` makes another thing of them.
    """

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
        return command(*arguments, tls=make(tls_cert, tls_key, tls_ca, tls_server_name), **options)

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


def forget(address: str | None, tls: Tls | None, set_ids: Iterable[str]) -> None:
    """Take sets out of the index of the service at ``address``, if one is given. Raises Conflict for a live set.

    Before they go from the store: points of a set that is nowhere else can be named by nobody.
    """
    if address is not None:
        from premoe_local.retrieval_client import retrieval

        with retrieval(address, tls) as service:
            for set_id in set_ids:
                service.delete(set_id)
