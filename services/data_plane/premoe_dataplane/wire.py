"""Plans as messages of ``premoe.experts.v1``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from google.protobuf import timestamp_pb2
from premoe.experts.v1 import experts_pb2 as pb

from premoe_dataplane.plan import SCHEMES, BlobPlan, Source, SwapPlan, Tier
from premoe_runtime.formats.errors import CorruptData
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.pieces import PIECE_BYTES, piece_count

TIERS: dict[Tier, pb.Tier.ValueType] = {
    "node": pb.TIER_NODE,
    "redis": pb.TIER_REDIS,
    "object": pb.TIER_OBJECT,
}
_NAMES = {value: name for name, value in TIERS.items()}


def experts_to_wire(experts: Iterable[ExpertId]) -> list[pb.ExpertId]:
    return [pb.ExpertId(layer=one.layer, expert=one.expert) for one in experts]


def experts_of_wire(experts: Iterable[pb.ExpertId]) -> list[ExpertId]:
    return [ExpertId(one.layer, one.expert) for one in experts]


def tier_of_wire(tier: pb.Tier.ValueType) -> str:
    """Its name; ``other`` for one of a later store."""
    return _NAMES.get(tier, "other")


def plan_to_wire(plan: SwapPlan) -> pb.ResolveResponse:
    expires_at = timestamp_pb2.Timestamp()
    expires_at.FromNanoseconds(int(plan.expires_at * 1e9))
    return pb.ResolveResponse(
        blobs=[_blob_to_wire(blob) for blob in plan.blobs], lease_id=plan.lease_id, expires_at=expires_at
    )


def plan_of_wire(response: pb.ResolveResponse, experts: Sequence[ExpertId], num_bytes: int, peer: str) -> SwapPlan:
    """A plan for exactly ``experts``, blobs of ``num_bytes`` each; sources of unknown schemes are left out.

    Raises CorruptData when the answer is about other blobs.
    """
    if len(response.blobs) != len(experts):
        raise CorruptData(f"{peer}: {len(response.blobs)} blobs resolved, {len(experts)} asked", reason="PLAN_INVALID")
    blobs = [_blob_of_wire(blob, peer) for blob in response.blobs]
    for blob, expert in zip(blobs, experts, strict=True):
        if blob.expert != expert:
            raise CorruptData(f"{peer}: resolved {blob.expert} for {expert}", reason="PLAN_INVALID")
        if blob.num_bytes not in (0, num_bytes):
            raise CorruptData(
                f"{peer}: {expert} has {blob.num_bytes} bytes there, {num_bytes} by the manifest", reason="PLAN_INVALID"
            )
    whole = [BlobPlan(blob.expert, blob.digest, num_bytes, blob.sources, blob.checks) for blob in blobs]
    if any(blob.checks and len(blob.checks) != piece_count(num_bytes) for blob in whole):
        raise CorruptData(f"{peer}: a blob has other pieces than its length", reason="PLAN_INVALID")
    return SwapPlan(whole, response.lease_id, response.expires_at.ToNanoseconds() / 1e9)


def _blob_to_wire(blob: BlobPlan) -> pb.BlobSources:
    return pb.BlobSources(
        expert=pb.ExpertId(layer=blob.expert.layer, expert=blob.expert.expert),
        digest=blob.digest,
        length=blob.num_bytes,
        piece_bytes=PIECE_BYTES if blob.checks else 0,
        crc32c=blob.checks,
        sources=[
            pb.Source(tier=TIERS[one.tier], scheme=one.scheme, url=one.url, offset=one.offset, length=blob.num_bytes)
            for one in blob.sources
        ],
    )


def _blob_of_wire(blob: pb.BlobSources, peer: str) -> BlobPlan:
    if blob.codec:
        raise CorruptData(f"{peer}: blobs are coded as {blob.codec!r}, which is not known here", reason="PLAN_INVALID")
    if blob.piece_bytes not in (0, PIECE_BYTES):
        raise CorruptData(f"{peer}: pieces of {blob.piece_bytes} bytes, expected {PIECE_BYTES}", reason="PLAN_INVALID")
    sources = [
        Source(one.scheme, _NAMES.get(one.tier, "object"), one.url, one.offset)
        for one in blob.sources
        if one.scheme in SCHEMES
    ]
    expert = ExpertId(blob.expert.layer, blob.expert.expert)
    return BlobPlan(expert, blob.digest, blob.length, tuple(sources), tuple(blob.crc32c) if blob.piece_bytes else ())
