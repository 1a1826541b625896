"""Where packs lie in a store. No torch: the expert store looks here too."""

from __future__ import annotations

from collections.abc import Sequence

from premoe_runtime.formats.errors import InvalidInput, NotFound
from premoe_runtime.formats.ids import is_tenant
from premoe_runtime.storage import Store

MANIFEST_FILE = "manifest.json"
MODELS_FOLDER = "models"
TENANTS_FOLDER = "tenants"


def models_folder(tenant: str = "") -> str:
    """Where a tenant's packs lie; without one those that everybody sees."""
    return f"{TENANTS_FOLDER}/{tenant}/{MODELS_FOLDER}" if tenant else MODELS_FOLDER


def tenant_root(url: str, tenant: str) -> str:
    """The URL of a store that holds a tenant's packs where a store of its own would. Raises InvalidInput."""
    if not is_tenant(tenant):
        raise InvalidInput(
            f"tenant {tenant!r} is no name; give lower-case letters, digits and hyphens, 63 at most",
            reason="TENANT_INVALID",
        )
    return f"{url.rstrip('/')}/{TENANTS_FOLDER}/{tenant}"


def pack_folder(model_id: str, tenant: str = "") -> str:
    return f"{models_folder(tenant)}/{model_id}"


def tenants_in(store: Store) -> list[str]:
    """Tenants that have a folder in a store. Raises what the store raises."""
    return [name for name in store.list_names(TENANTS_FOLDER) if is_tenant(name)]


def packs_in(store: Store, tenant: str = "") -> list[str]:
    """Model ids of a store's packs of a tenant, or of the shared ones. Raises what the store raises."""
    return [
        name
        for name in store.list_names(models_folder(tenant))
        if store.exists(f"{pack_folder(name, tenant)}/{MANIFEST_FILE}")
    ]


def the_only(packs: Sequence[str], where: str) -> str:
    """The one pack of the store ``where``. Raises NotFound (MODEL_NOT_FOUND) and InvalidInput (MODEL_AMBIGUOUS)."""
    if not packs:
        raise NotFound(f"{where}: no pack here; write one with `premoe pack DIR --to URL`", reason="MODEL_NOT_FOUND")
    if len(packs) > 1:
        some = ", ".join(pack_folder(name) for name in packs[:5])
        raise InvalidInput(f"{where} holds {len(packs)} packs; name one: {some}", reason="MODEL_AMBIGUOUS")
    return packs[0]
