"""Groups of things that are alike, by the eigenvectors of their likeness. Pure."""

from __future__ import annotations

import numpy as np

from premoe_runtime.formats.arrays import F64, I64


def spectral(likeness: F64, count: int) -> I64:
    """i64[n]: the cluster of each of n things, 0..count-1, none empty. ``likeness`` f64[n, n]: symmetric, not negative.

    The first ``count`` eigenvectors of the normalised likeness (Ng, Jordan and Weiss 2001); rows are divided by the
    rotation of them that is nearest to one column a cluster, as the columns that QR with pivoting takes name it (Damle,
    Minden and Ying 2019): there is no start to draw and nothing to iterate, so the same things in another order are in
    the same clusters. Clusters are numbered by their first members.
    """
    # scipy takes a quarter of a second to import, and only merging needs it.
    from scipy.linalg import qr

    root = np.sqrt(likeness.sum(axis=1))
    scale = 1 / np.where(root > 0, root, 1.0)
    _, vectors = np.linalg.eigh(likeness * scale[:, None] * scale[None, :])
    first = vectors[:, -count:]
    _, _, pivots = qr(first.T, mode="economic", pivoting=True)
    heads = pivots[:count]
    left, _, right = np.linalg.svd(first[heads].T, full_matrices=False)
    found = np.abs(first @ (left @ right)).argmax(axis=1)
    found[heads] = np.arange(count)  # each has its head, even where two are nearly one
    _, where, labels = np.unique(found, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(where))[labels].astype(np.int64)
