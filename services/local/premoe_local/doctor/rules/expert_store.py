"""The expert store's address."""

from __future__ import annotations

from premoe_local.doctor.facts.expert_store import Peer
from premoe_local.doctor.finding import Finding, ok

FAR_S = 0.02
_CHECK = "expert store"
_FAILURE = "a worker that cannot reach it starts not at all, or swaps nothing in; no factor: it is a failure"


def judge(peer: Peer) -> Finding:
    if peer.fault:
        change = "check address and TLS files, and that it runs (app.kubernetes.io/component=expert-store)"
        return Finding(_CHECK, "error", peer.fault, _FAILURE, change)
    if not peer.is_ours:
        found = f"another service answers at {peer.address}"
        return Finding(_CHECK, "error", found, _FAILURE, "give the expert store's address, port 50051 in a cluster")
    if not peer.serving:
        found = f"{peer.address} answers that it does not serve"
        return Finding(_CHECK, "error", found, _FAILURE, "it is starting or draining, or its log says why")
    found = f"{peer.address} serves" + ("" if peer.latency is None else f", {peer.latency * 1e3:.2f} ms a call")
    if peer.latency is None or peer.latency < FAR_S:
        return ok(_CHECK, found)
    return Finding(
        _CHECK,
        "warning",
        found,
        "a call takes 0.45 ms on one machine, and every swap begins with one",
        "put stores into the zone of their workers, and see whether they have processor time enough",
        "data-plane.md §4",
    )
