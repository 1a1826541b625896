"""How likely tokens were under the model's own distribution."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from premoe_runtime.engines.base import Logprobs
from premoe_runtime.formats.errors import CorruptData


def logprobs(logits: torch.Tensor, token_ids: Sequence[int], counts: Sequence[int]) -> list[Logprobs]:
    """Of a token in each row, with as many of the likeliest as ``counts`` says; ``logits``: float[N, V].

    The device is waited for once. Raises CorruptData for a row with a NaN or +inf.
    """
    values = logits.float()
    most = min(max(counts), values.shape[1])
    whole = values.logsumexp(-1, keepdim=True).double()
    own = values.gather(1, torch.tensor(token_ids, device=values.device)[:, None])
    best, ids = values.topk(most)
    host = torch.cat([whole, own.double() - whole, best.double() - whole, ids.double()], dim=1).cpu().numpy()
    if not np.isfinite(host[:, 0]).all():
        raise CorruptData("the model's logits are not finite; the weights may be damaged", reason="LOGITS_INVALID")
    return [
        Logprobs(token, row[0], tuple(zip(map(int, row[1 + most :][:count]), row[1 : 1 + most], strict=False)))
        for token, count, row in zip(token_ids, counts, host[:, 1:].tolist(), strict=True)
    ]
