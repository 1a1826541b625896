"""The stock forward taken apart gives, put together again, the stock forward."""

from pathlib import Path

import pytest
import torch
from support.engines import prompt
from support.family_rows import ROWS, Row
from support.tiny import tiny_model

from premoe_runtime.engines.hf.calls import layer_calls, logits_of


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_layers_one_by_one_and_the_head_give_the_stock_logits(tmp_path: Path, row: Row) -> None:
    model = tiny_model(row.family, **row.overrides).requires_grad_(False)
    ids = torch.tensor([prompt(24, seed) for seed in range(2)])
    expected = model(input_ids=ids, use_cache=False).logits
    calls = layer_calls(model, ids)
    hidden = calls[0].embedded
    for call in calls:
        hidden = call(hidden)
    output = hidden.flatten(0, 1).requires_grad_()
    logits = logits_of(model, output)
    assert torch.equal(logits.detach().view(expected.shape), expected)
    assert torch.autograd.grad(logits.sum(), output)[0].abs().sum() > 0
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, expected)
