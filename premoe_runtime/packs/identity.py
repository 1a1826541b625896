"""What identifies a blob and the tensors in it, found in one pass over its memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import blake3
from crc32c import crc32c

from premoe_runtime.formats.pieces import PIECE_BYTES
from premoe_runtime.packs.contents import TensorInfo


class Identity(NamedTuple):
    """blake3 of a blob, crc32c of each piece of it, and blake3 of each canonical tensor in it, by name."""

    digest: str
    checks: tuple[int, ...]
    tensors: dict[str, str]


def identify(blob: bytes | memoryview, parts: Sequence[TensorInfo]) -> Identity:
    """The identity of a blob that holds ``parts``, each at its ``offset``."""
    # Piece by piece, so that what one hash brought into the processor's cache is there for the others.
    view, whole = memoryview(blob), blake3.blake3()
    tensors = {part.name: blake3.blake3() for part in parts}
    checks: list[int] = []
    for start in range(0, len(view), PIECE_BYTES):
        piece = view[start : start + PIECE_BYTES]
        whole.update(piece)
        checks.append(crc32c(piece))
        for part in parts:
            inside = piece[max(part.offset - start, 0) : max(part.offset + part.num_bytes - start, 0)]
            tensors[part.name].update(inside)
    return Identity(whole.hexdigest(), tuple(checks), {name: one.hexdigest() for name, one in tensors.items()})
