"""Blobs as files of this node: what is kept, what goes, and whether it is still right."""

from premoe_expert_store.cache.admission import Use
from premoe_expert_store.cache.folder import CacheFolder, given_folder, private_folder
from premoe_expert_store.cache.node_cache import Draft, NodeCache, Opened

__all__ = ["CacheFolder", "Draft", "NodeCache", "Opened", "Use", "given_folder", "private_folder"]
