"""Which ways of reading a blob Resolve names, and in which order: by cost. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from premoe_dataplane.blob_cache import blob_key
from premoe_dataplane.plan import BlobPlan, Scheme, Source, Tier
from premoe_dataplane.signing import BlobName, Signer

from premoe_expert_store.catalogue import Pack
from premoe_runtime.formats.ids import ExpertId

BY_COST: tuple[Scheme, ...] = ("file", "http", "redis", "grpc", "object")
TINY_BYTES = 256 << 10
"""Below it a stream of many blobs beats a request a blob."""


@dataclass(frozen=True, slots=True)
class Ways:
    """What this store can name. ``base``: of its byte server's URLs, empty without one.

    ``home`` tells the base of the replica that a digest belongs to, None where that is this store. ``cache``: the
    folder of its blobs, where workers see the same one. ``redis``: whether blobs go there.
    """

    signer: Signer
    base: str = ""
    home: Callable[[str], str | None] = lambda digest: None
    cache: Path | None = None
    redis: bool = False

    def plans(
        self,
        pack: Pack,
        experts: Sequence[ExpertId],
        present: Sequence[bool],
        schemes: Iterable[str],
        *,
        until: float,
    ) -> list[BlobPlan]:
        """Plans in order, with sources of ``schemes`` alone (none: "grpc"), URLs good until ``until``."""
        asked = frozenset(schemes) or frozenset(("grpc",))
        order = [scheme for scheme in BY_COST if scheme in asked and self._has(scheme)]
        if pack.blob_bytes < TINY_BYTES and {"grpc", "http"} <= set(order):
            order.remove("grpc")
            order.insert(order.index("http"), "grpc")
        end = int(until) + 1
        plans = []
        for expert, here in zip(experts, present, strict=True):
            digest = pack.manifest.digest(expert)
            name = BlobName(digest, pack.manifest.model_id, expert, pack.tenant)
            sources = tuple(source for scheme in order for source in self._sources(scheme, pack, name, here, end))
            plans.append(BlobPlan(expert, digest, pack.blob_bytes, sources, pack.sums(expert)))
        return plans

    def _has(self, scheme: Scheme) -> bool:
        return bool({"file": self.cache, "http": self.base, "redis": self.redis}.get(scheme, True))

    def _sources(self, scheme: Scheme, pack: Pack, name: BlobName, here: bool, end: int) -> list[Source]:
        tier: Tier = "node" if here else "object"
        if scheme == "file":
            return [Source("file", "node", f"{self.cache}/blobs/{name.digest[:2]}/{name.digest}")] if here else []
        if scheme == "http":
            return self._urls(name, tier, end)
        if scheme == "redis":
            return [Source("redis", "redis", blob_key(name.digest))]
        if scheme == "object":
            path, offset = pack.place(name.expert)
            return [Source("object", "object", path, offset)]
        return [Source("grpc", tier)]

    def _urls(self, name: BlobName, tier: Tier, end: int) -> list[Source]:
        """Ours first where the blob is here; else first the one where all who want it meet."""
        path = self.signer.path(name, end)
        home = self.home(name.digest)
        bases = [self.base] if home is None else [home, self.base]
        if tier == "node":
            bases.reverse()
        return [Source("http", tier, base + path) for base in bases]
