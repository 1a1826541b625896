"""Signatures of a conversation as the wire carries them."""

from __future__ import annotations

import numpy as np
from premoe.patterns.v1 import patterns_pb2 as pb

from premoe_runtime.formats.signature import Signatures


def read_signatures(message: pb.RetrieveRequest | pb.RecordedSignature) -> Signatures:
    """Those in a message, whatever their lengths."""
    whole, alone, *earlier = (
        np.fromiter(values, np.float32, len(values))
        for values in (message.signature, message.alone, *(each.values for each in message.earlier))
    )
    return Signatures(whole, alone if alone.size else None, tuple(earlier))
