"""The object store."""

from __future__ import annotations

from premoe_local.console import human_bytes
from premoe_local.doctor.facts.store import Bucket
from premoe_local.doctor.finding import Finding, ok, skipped
from premoe_local.doctor.rules import clock as clocks

FAR_S = 0.25
SLOW = 0.05e9
"""Bytes a second of one range; 32 under way carry 1.6 GB/s then."""


def judge(bucket: Bucket) -> list[Finding]:
    if bucket.fault:
        why = "workers and stores start from it, and every miss of a cache ends there; no factor: it is a failure"
        change = "check the URL, the AWS_* variables, and that the server answers from this machine"
        found = [Finding("object store", "error", bucket.fault, why, change)]
    else:
        packs = "1 pack" if bucket.packs == 1 else f"{bucket.packs} packs"
        found = [ok("object store", f"{bucket.url}: {packs}"), _first_byte(bucket), _range(bucket)]
    if bucket.clock is not None:
        found.append(clocks.judge("object store", bucket.clock))
    elif bucket.is_remote and not bucket.fault:
        found.append(skipped("clock of object store", "its endpoint tells no date"))
    return found


def _first_byte(bucket: Bucket) -> Finding:
    check = "object store, first byte"
    if bucket.first_byte is None:
        return skipped(check, "there is no pack to read")
    found = f"{bucket.first_byte * 1e3:.1f} ms"
    if bucket.first_byte < FAR_S:
        return ok(check, found)
    return Finding(
        check,
        "warning",
        found,
        "10 to 100 ms are usual in the region of a bucket, and 16 to 32 ranges under way hide them; this is more",
        "use a bucket in this region, and an endpoint inside the network (a gateway or private endpoint)",
        "data-plane.md §13",
    )


def _range(bucket: Bucket) -> Finding:
    check = "object store, one range"
    if bucket.range_time is None:
        return skipped(check, "there is no pack to read")
    speed = bucket.range_bytes / max(bucket.range_time, 1e-9)
    found = f"{human_bytes(bucket.range_bytes)} in {bucket.range_time * 1e3:.0f} ms, {speed / 1e9:.2f} GB/s"
    if speed >= SLOW or bucket.range_bytes < 1 << 20:
        return ok(check, found)
    return Finding(
        check,
        "warning",
        found,
        f"with 32 ranges under way that is {32 * speed / 1e9:.1f} GB/s; 3 GB/s were seen from S3",
        "look for a proxy or a far region in between; let a cache (node folder, Redis) serve what is read again",
        "data-plane.md §11, published by Run:ai",
    )
