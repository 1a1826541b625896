"""`premoe gc`: what a whole store holds and nobody needs any more: packs, patterns, and what killed runs left."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from premoe_local.console import date, human_bytes, json_option, note, print_json, print_table, progress
from premoe_local.pattern_rubbish import DAY_S, rubbish_options, set_of, told
from premoe_local.pruned_models import Needs, parse
from premoe_local.retrieval_option import forget, index_option, tls_options
from premoe_runtime.formats.errors import InvalidInput, NotFound
from premoe_runtime.formats.ids import bare_digest
from premoe_runtime.offline.patterns.rubbish import Choice, Sweeper
from premoe_runtime.packs.ensure import recorded_pack
from premoe_runtime.packs.place import MODELS_FOLDER, tenant_root, tenants_in
from premoe_runtime.packs.rubbish import Kept, References, Rubbish
from premoe_runtime.packs.sweep import Sweep
from premoe_runtime.storage import ObjectInfo, Store, open_store

if TYPE_CHECKING:
    from premoe_servicekit.tls import Tls

_KINDS = {"live": "live pointer", "sets": "set", "patterns": "pattern"}


@click.command("gc")
@click.argument("store_url")
@click.option("--packs", is_flag=True, help="Also packs that nothing refers to.")
@click.option("--tenant", metavar="NAME", help="A tenant's packs and packing, instead of everybody's.")
@click.option("--keep", "kept", metavar="MODEL_ID", multiple=True, help="Pack that stays in any case, repeatable.")
@click.option(
    "--models",
    "listing",
    type=click.Path(path_type=Path, dir_okay=False, exists=True, allow_dash=True),
    help="Answer of `kubectl get prunedmodels -A -o json`, - for stdin: packs and sets that stay.",
)
@rubbish_options
@index_option
@json_option
@tls_options
def command(
    store_url: str,
    packs: bool,
    tenant: str | None,
    kept: tuple[str, ...],
    listing: Path | None,
    sets: bool,
    stale: bool,
    days: float,
    delete: bool,
    address: str | None,
    as_json: bool,
    tls: Tls | None,
) -> None:
    """Find what nobody needs in the store at STORE_URL, and delete it with --delete.

    That is halves of packs, staging areas of packing that was given up, source marks of packs that are gone, and what
    `premoe patterns gc` finds. With --packs also whole packs that no pattern set, no live pointer, no PrunedModel of
    --models and no --keep refers to; one of them must be left. Profiles are left alone, and refer to no pack.
    What tenants have is looked at for one of them at a time, by --tenant; patterns are everybody's and stay then.
    """
    whole, before = _there(open_store(store_url)), time.time() - days * DAY_S
    store = whole if tenant is None else _of_tenant(whole, store_url, tenant)
    needs = [] if listing is None else _needs(listing)
    held = {model_id: f"--keep {name}" for name in kept for model_id in [_stored(store, name)]} | _models(store, needs)
    keep = frozenset(set_id for need in needs for set_id in need.sets)
    patterns = Sweeper(whole, Choice(before, sets=sets, stale=stale, keep=keep))
    sweep = Sweep(store, lambda: References(patterns.weights(), held), before=before, packs=packs)
    with progress("looking", quiet=as_json, counts=False):
        found, plan = [] if tenant else patterns.find(), sweep.find()
    rows = [*map(_Row.of, found), *map(_Row.of, plan.rubbish)]
    if delete:
        forget(address, tls, filter(None, map(set_of, found)))
        with progress("deleting", sum(row.size for row in rows), unit="bytes", quiet=as_json) as bar:
            rows = []
            for info in patterns.remove(found):
                rows.append(_Row.of(info))
                bar.advance(info.size)
            rows += map(_Row.of, sweep.remove(plan.rubbish, bar.advance))
    _say(rows, plan.kept, deleted=delete, as_json=as_json)


def _there(store: Store) -> Store:
    """The store. Raises NotFound for a folder that is none: its listings would be empty."""
    if store.local_root is not None and not store.local_root.is_dir():
        raise NotFound(f"{store.url}: no such folder", reason="STORE_NOT_FOUND")
    return store


def _of_tenant(whole: Store, url: str, tenant: str) -> Store:
    """What a tenant has. Raises NotFound, and InvalidInput for what is no tenant's name."""
    root = tenant_root(url, tenant)
    if tenant not in (tenants := tenants_in(whole)):
        raise NotFound(
            f"{whole.url} has nothing of a tenant {tenant}; it has {', '.join(tenants) or 'no tenants'}",
            reason="TENANT_NOT_FOUND",
        )
    return open_store(root)


def _needs(listing: Path) -> list[Needs]:
    """What PrunedModels need; those that name no pack are said. Raises InvalidInput."""
    where = "stdin" if str(listing) == "-" else str(listing)
    try:
        needs = parse(sys.stdin.read() if where == "stdin" else listing.read_text(encoding="utf-8"), where)
    except UnicodeDecodeError:
        raise InvalidInput(f"{where} is no text", reason="PRUNED_MODELS_INVALID") from None
    return needs


def _models(store: Store, needs: Sequence[Needs]) -> dict[str, str]:
    """Model ids that PrunedModels name, also by the mark of their commit, and which one does."""
    found: dict[str, str] = {}
    for need in needs:
        recorded = recorded_pack(store, need.source, need.revision)
        models = need.models | ({recorded.model_id} if recorded else set())
        found |= dict.fromkeys(models, need.who)
        if not models:
            note(f"note: {need.who} names no pack yet; packs younger than --days stay")
    return found


def _stored(store: Store, name: str) -> str:
    """The one pack whose id starts with ``name``. Raises NotFound, InvalidInput (several)."""
    bare = bare_digest(name)
    fits = [found for found in store.list_names(MODELS_FOLDER) if bare and found.startswith(bare)]
    if not fits:
        raise NotFound(f"no pack {name!r} in {store.url}; see `premoe gc {store.url}`", reason="MODEL_NOT_FOUND")
    if len(fits) > 1 and bare not in fits:
        raise InvalidInput(f"{len(fits)} packs of {store.url} start with {name!r}; give more", reason="ID_AMBIGUOUS")
    return bare if bare in fits else fits[0]


class _Row(NamedTuple):
    """What goes, one object or all below a path."""

    kind: str
    path: str
    size: int
    modified: float

    @classmethod
    def of(cls, one: ObjectInfo | Rubbish) -> _Row:
        kind = one.kind if isinstance(one, Rubbish) else _KINDS[one.path.partition("/")[0]]
        return cls(kind, one.path, one.size, one.modified)


def _say(rows: Sequence[_Row], kept: Sequence[Kept], *, deleted: bool, as_json: bool) -> None:
    num_bytes = sum(row.size for row in rows)
    if as_json:
        objects = [{"kind": r.kind, "path": r.path, "bytes": r.size, "written": date(r.modified)} for r in rows]
        packs = [{"path": k.pack.folder.path, "bytes": k.pack.folder.size, "because": k.because} for k in kept]
        print_json({"deleted": deleted, "bytes": num_bytes, "objects": objects, "packs": packs})
        return
    if rows:
        cells = [(row.kind, row.path, human_bytes(row.size), date(row.modified)) for row in rows]
        print_table("Deleted" if deleted else "Nobody needs", ("what", "object", "size", "written"), cells)
    if kept:
        stay = [(one.pack.folder.path, human_bytes(one.pack.folder.size), one.because) for one in kept]
        print_table("Packs that stay", ("object", "size", "because of"), stay)
    click.echo(told(len(rows), num_bytes, deleted=deleted))
