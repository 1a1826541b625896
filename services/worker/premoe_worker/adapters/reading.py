"""The ways in which this worker reads blobs, and whom it trusts with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import grpc
from premoe_dataplane.fetcher import Fetcher
from premoe_dataplane.plan import SCHEMES, BlobPlan, Scheme, Source, SwapPlan
from premoe_dataplane.redis_nodes import under_tls
from premoe_dataplane.transports.base import Transport
from premoe_dataplane.transports.file import FileTransport
from premoe_dataplane.transports.http import HttpTransport
from premoe_dataplane.transports.objects import ObjectTransport
from premoe_dataplane.transports.redis import RedisTransport
from premoe_dataplane.transports.stream import StreamTransport
from premoe_servicekit.tls import Tls

from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.packs.place import pack_folder
from premoe_runtime.storage import open_store


@dataclass(frozen=True, slots=True)
class Reading:
    """What is set. ``schemes``: those that may be used; "redis" and "object" need their URL besides.

    ``background_rate``: most bytes a second of what nobody waits for.
    """

    tls: Tls | None = None
    redis_url: str = ""
    object_store_url: str = ""
    schemes: Sequence[Scheme] = SCHEMES
    background_rate: float | None = None

    def fetcher(self, channel: grpc.Channel, peer: str, model_id: Callable[[], str], *, idle_s: float) -> Fetcher:
        """Reads all of that; ``close`` it. Raises InvalidInput on a bad URL."""
        transports: list[Transport] = []
        with ExitStack() as undo:
            if "file" in self.schemes:
                transports.append(undo.enter_context(closing(FileTransport())))
            if "http" in self.schemes:
                transports.append(undo.enter_context(closing(HttpTransport(self.tls, idle_s=idle_s))))
            if "redis" in self.schemes and self.redis_url:
                transports.append(undo.enter_context(closing(RedisTransport(self.redis_url))))
            if "object" in self.schemes and self.object_store_url:
                transports.append(undo.enter_context(closing(ObjectTransport(open_store(self.object_store_url)))))
            if "grpc" in self.schemes:
                transports.append(StreamTransport(channel, peer, model_id, idle_s=idle_s))
            undo.pop_all()
        return Fetcher(transports, trusted=self.trusts, background_rate=self.background_rate)

    def trusts(self, source: Source) -> bool:
        """Whether crc32c is enough for what comes from there: nobody on the way can make other bytes fit the sums.

        The sums come with the plan, so its RPC has to be under TLS, and then what carries the bytes too, unless it is
        the kernel. Object storage is somebody else's: its bytes are held against their digest.
        """
        if self.tls is None or source.scheme == "object":
            return False
        if source.scheme == "http":
            return source.url.startswith("https:")
        if source.scheme == "redis":
            return under_tls(self.redis_url)
        return True


def direct_plan(manifest: Manifest, experts: Sequence[ExpertId], folder: str = "") -> SwapPlan:
    """Where object storage has blobs, from the manifest alone. ``folder``: the pack's, where a store has told it."""
    folder = folder or pack_folder(manifest.model_id)
    blobs = []
    for expert in experts:
        layer = manifest.layers[expert.layer]
        offset = layer.data_offset + expert.expert * layer.stride
        source = Source("object", "object", f"{folder}/{layer.file}", offset)
        blobs.append(BlobPlan(expert, manifest.digest(expert), manifest.layout.blob_bytes, (source,)))
    return SwapPlan(blobs, "", 0.0)


def told_folder(plan: SwapPlan, manifest: Manifest) -> str:
    """The pack's folder in object storage as a plan names it; empty when it names none. A tenant's lies elsewhere."""
    for blob in plan.blobs:
        file = f"/{manifest.layers[blob.expert.layer].file}"
        for source in blob.sources:
            if source.scheme == "object" and source.url.endswith(file):
                return source.url.removesuffix(file)
    return ""
