"""How blobs come to this node: what arrives, from which tier, and that many who want one cause one read."""

from premoe_expert_store.filling.arrival import Arrival
from premoe_expert_store.filling.landing import Origin
from premoe_expert_store.filling.objects import ObjectReader
from premoe_expert_store.filling.room import Room

__all__ = ["Arrival", "ObjectReader", "Origin", "Room"]
