"""Where a blob's fields go among vLLM's parameters: names and halves as vLLM's weight loader wants them."""

from __future__ import annotations

import pytest
import torch

from premoe_runtime.engines.vllm.shards import Names, Shard
from premoe_runtime.formats.errors import InvalidInput

QWEN, MIXTRAL = Names("gate_proj", "up_proj", "down_proj"), Names("w1", "w3", "w2")
GPT_OSS = Names("gate_proj", "up_proj", "down_proj", gpt_oss=True)
TENSOR = torch.arange(24).reshape(4, 6)


def one(names: Names, field: str, tensor: torch.Tensor = TENSOR) -> Shard:
    (found,) = names.shards(field, tensor)
    return found


def test_plain_experts() -> None:
    gate, up = QWEN.shards("gate_up", TENSOR)
    assert (gate.parameter, gate.part, up.parameter, up.part) == ("w13_weight", "w1", "w13_weight", "w3")
    assert torch.equal(torch.cat([gate.tensor, up.tensor]), TENSOR)
    assert one(QWEN, "down")[:2] == ("w2_weight", "w2")


@pytest.mark.parametrize(
    ("names", "field", "parameter", "part"),
    [
        (QWEN, "gate_proj.weight", "w13_weight", "w1"),
        (QWEN, "up_proj.weight_scale_inv", "w13_weight_scale_inv", "w3"),
        (QWEN, "down_proj.weight_packed", "w2_weight_packed", "w2"),
        (MIXTRAL, "w1.qweight", "w13_qweight", "w1"),
        (MIXTRAL, "w3.scales", "w13_scales", "w3"),
        (MIXTRAL, "w2.qzeros", "w2_qzeros", "w2"),
    ],
)
def test_tensors_of_a_number_format(names: Names, field: str, parameter: str, part: str) -> None:
    found = one(names, field)
    assert found[:2] == (parameter, part)
    assert found.tensor is TENSOR


def test_columns_grouped_by_importance_are_refused_and_runs_need_no_index() -> None:
    assert not list(QWEN.shards("up_proj.g_idx", torch.tensor([0, 0, 1, 1])))
    with pytest.raises(InvalidInput, match=r"up_proj\.g_idx: columns are grouped by importance"):
        list(QWEN.shards("up_proj.g_idx", torch.tensor([0, 1, 0, 1])))


def test_gpt_oss_has_rows_in_turns_and_matrices_as_checkpoints_do() -> None:
    found = one(GPT_OSS, "gate_up")
    assert found[:2] == ("w13_weight", "gpt_oss_w13")
    assert torch.equal(found.tensor, TENSOR[[0, 2, 1, 3]].T)
    assert torch.equal(one(GPT_OSS, "down").tensor, TENSOR.T)
    bias = one(GPT_OSS, "gate_up_bias", torch.arange(4))
    assert (bias.parameter, bias.tensor.tolist()) == ("w13_bias", [0, 2, 1, 3])
    assert one(GPT_OSS, "down_bias")[:2] == ("w2_bias", "gpt_oss_w2")


def test_gpt_oss_in_mxfp4_is_as_stored() -> None:
    blocks, scales = one(GPT_OSS, "gate_up_proj_blocks"), one(GPT_OSS, "down_proj_scales")
    assert blocks[:2] == ("w13_weight", "gpt_oss_w13")
    assert scales[:2] == ("w2_weight_scale", "gpt_oss_w2")
    assert blocks.tensor is scales.tensor is TENSOR
