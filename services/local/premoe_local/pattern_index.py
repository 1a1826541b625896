"""`premoe patterns reindex`: fill the vector index from the object store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from premoe_local.console import json_option, note, print_json, progress
from premoe_local.retrieval_option import tls_options
from premoe_runtime.formats.errors import CorruptData, NotFound, Unavailable
from premoe_runtime.offline.patterns.life import by_need
from premoe_runtime.storage import open_store

if TYPE_CHECKING:
    from premoe_servicekit.tls import Tls

    from premoe_local.retrieval_client import Retrieval


@click.command("reindex")
@click.argument("store_url")
@click.option(
    "--retrieval", "address", metavar="HOST:PORT", required=True, help="Retrieval service that has the index."
)
@json_option
@tls_options
def reindex(store_url: str, address: str, as_json: bool, tls: Tls | None) -> None:
    """Index every set of a store that the index does not hold whole: the live ones first.

    For an index that is new, was moved or has lost points. STORE_URL is the store that the service reads, too.
    Stopped in between, the same command goes on.
    """
    from premoe_local.retrieval_client import retrieval

    sets = by_need(open_store(store_url))
    done: dict[str, list[str]] = {"indexed": [], "already": [], "failed": []}
    exemplars = 0
    with retrieval(address, tls) as service, progress("indexing", len(sets), quiet=as_json) as bar:
        for set_id in sets:
            count = _index(service, set_id, done)
            exemplars += count
            bar.advance()
    if as_json:
        print_json({**done, "exemplars": exemplars})
    else:
        click.echo(
            f"indexed {len(done['indexed'])} sets with {exemplars} exemplars; {len(done['already'])} were there already"
        )
    if done["failed"]:
        raise CorruptData(
            f"{len(done['failed'])} of {len(sets)} sets are not whole and were left out; build them again or remove "
            "them with `premoe patterns rm`",
            reason="PATTERN_SET_INVALID",
        )


def _index(service: Retrieval, set_id: str, done: dict[str, list[str]]) -> int:
    """Index a set and say what became of it; returns the exemplars that are new in the index."""
    try:
        exemplars, already = service.publish(set_id)
    except (CorruptData, NotFound) as error:
        note(f"note: {error}")
        done["failed"].append(set_id)
        return 0
    except Unavailable as error:
        raise Unavailable(
            f"{error}; {sum(map(len, done.values()))} sets are done, and the same command goes on", reason=error.reason
        ) from error
    done["already" if already else "indexed"].append(set_id)
    return 0 if already else exemplars
