"""Probing: the stock model's own first router, whatever is resident, while an engine runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from support.engines import EXPERTS, hf_bench, prompt
from support.sources import MemorySource
from support.tiny import FAMILIES, Family, tiny_checkpoint, tiny_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from premoe_runtime.engines.hf.model import load_slot_model
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.offline.prompts import encode_prompt
from premoe_runtime.probing.attention import QUERY_BLOCK
from premoe_runtime.probing.prober import Prober
from premoe_runtime.probing.weights import load_probing_model


@dataclass(frozen=True)
class Said:
    role: str
    content: str


def prober_of(source: MemorySource, **options: Any) -> Prober:
    """With weights of its own, as beside an engine in another process."""
    return Prober(load_probing_model(source), source.manifest(), **options)


def stock_signature(folder: Path, token_ids: list[int], indices: list[int], layer: int = 0) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor([token_ids]), output_router_logits=True).router_logits[layer]
    mean = logits.float().softmax(-1).sqrt()[indices].mean(0)
    return (mean / mean.norm()).numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_signature_is_the_stock_routers(tmp_path: Path, family: Family) -> None:
    folder = tiny_checkpoint(tmp_path, family)
    prober = prober_of(MemorySource(folder))
    asked, chosen = prompt(30), list(range(7, 19))
    found = prober.signature(asked, chosen)
    assert found.shape == (prober.dimension,) == (EXPERTS,)
    assert found.dtype == np.float32
    assert np.allclose(found, stock_signature(folder, asked, chosen), atol=1e-5)
    assert np.linalg.norm(found) == pytest.approx(1.0)
    everything = stock_signature(folder, asked, list(range(30)))
    assert np.allclose(prober.signature(asked), everything, atol=1e-5)


TIED: dict[str, Any] = {"tie_word_embeddings": True}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("config", [{}, TIED], ids=["plain", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_of_its_own_give_the_bits_of_the_whole_model(
    tmp_path: Path, family: Family, config: dict[str, Any], dtype: torch.dtype
) -> None:
    source = MemorySource(tiny_checkpoint(tmp_path, family, dtype, **config))
    whole, few = load_slot_model(source, slots=2).model, load_probing_model(source)
    asked = prompt(40)
    own, shared = (Prober(model, source.manifest()).signature(asked) for model in (few, whole))
    assert np.array_equal(own, shared)


def test_weights_of_its_own_are_few(tmp_path: Path) -> None:
    source = MemorySource(tiny_checkpoint(tmp_path, num_hidden_layers=6, mlp_only_layers=[0]))
    held = [name for name, tensor in load_probing_model(source).named_parameters() if not tensor.is_meta]
    blocks = {name.split(".")[2] for name in held if ".layers." in name}
    assert blocks == {"0", "1"}
    assert [name for name in held if ".1.mlp." in name] == ["model.layers.1.mlp.gate.weight"]
    assert [name for name in held if ".layers." not in name] == ["model.embed_tokens.weight"]


def test_leading_dense_blocks_are_run(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, num_hidden_layers=3, mlp_only_layers=[0])
    prober = prober_of(MemorySource(folder))
    asked = prompt(20)
    assert np.allclose(prober.signature(asked), stock_signature(folder, asked, list(range(20))), atol=1e-5)


@pytest.mark.parametrize(
    ("family", "window"),
    [("mixtral", {}), ("qwen3_moe", {"use_sliding_window": True}), ("qwen2_moe", {"use_sliding_window": True})],
)
def test_a_sliding_window_is_kept(tmp_path: Path, family: Family, window: dict[str, Any]) -> None:
    folder = tiny_checkpoint(tmp_path, family, sliding_window=4, **window)
    prober = prober_of(MemorySource(folder))
    asked = prompt(24)
    assert np.allclose(prober.signature(asked), stock_signature(folder, asked, list(range(24))), atol=1e-5)


def test_a_router_wider_than_the_model_is_probed(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, dtype=torch.bfloat16)
    source = MemorySource(folder)
    for path in [path for path in source.files if path.endswith(".safetensors")]:
        tensors = load(source.files[path])
        source.files[path] = save({name: t.float() if ".gate." in name else t for name, t in tensors.items()})
    found = prober_of(source).signature(prompt(24))
    narrow = prober_of(MemorySource(folder)).signature(prompt(24))
    assert np.allclose(found, narrow, atol=0.02)


@pytest.mark.parametrize("window", [None, 100])
def test_long_prompts_are_probed_in_blocks(tmp_path: Path, window: int | None) -> None:
    folder = tiny_checkpoint(tmp_path, "mixtral", sliding_window=window)
    prober = prober_of(MemorySource(folder), max_tokens=2000)
    asked = prompt(2 * QUERY_BLOCK + 70)
    expected = stock_signature(folder, asked, list(range(len(asked))))
    assert np.allclose(prober.signature(asked), expected, atol=1e-5)


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the values of the largest tensor that an operator makes."""

    values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, tuple | list) else (out,)
        self.values = max([self.values, *(one.numel() for one in made if isinstance(one, torch.Tensor))])
        return out


def test_no_tensor_of_a_probe_is_tokens_by_tokens(tmp_path: Path) -> None:
    tokens = 16 * QUERY_BLOCK
    prober = prober_of(MemorySource(tiny_checkpoint(tmp_path)), max_tokens=tokens)
    with Largest() as largest:  # type: ignore[no-untyped-call]
        prober.signature(prompt(tokens))
    assert tokens < largest.values < tokens * tokens / 2


def test_probing_does_not_disturb_a_running_engine(tmp_path: Path) -> None:
    with hf_bench(tmp_path) as bench:
        prober = Prober(bench.slot_model.model, bench.slot_model.manifest)
        alone = bench.run(prompt(12), row=1, max_tokens=60).tokens
        expected = prober.signature(prompt(40, seed=3))
        running = bench.submit(prompt(12), row=1, max_tokens=60)
        while not running.ended.is_set():
            assert np.array_equal(prober.signature(prompt(40, seed=3)), expected)
        assert running.wait().tokens == alone


def test_probing_reads_no_expert(tmp_path: Path) -> None:
    source = MemorySource(tiny_checkpoint(tmp_path))
    prober_of(source).signature(prompt(9))
    assert source.blobs_read == []


@pytest.fixture
def prober(tmp_path: Path) -> Prober:
    return prober_of(MemorySource(tiny_checkpoint(tmp_path)), max_tokens=16)


@pytest.mark.parametrize(
    ("token_ids", "indices", "reason"),
    [
        ([], None, "PROMPT_EMPTY"),
        ([1, 2], [], "PROMPT_EMPTY"),
        ([1] * 17, None, "CONTEXT_LENGTH_EXCEEDED"),
        ([1, 5000], None, "TOKEN_ID_INVALID"),
        ([1, 2], [2], "SPAN_INVALID"),
        ([1, 2], [-1], "SPAN_INVALID"),
    ],
)
def test_what_cannot_be_probed_is_named(
    prober: Prober, token_ids: list[int], indices: list[int] | None, reason: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        prober.signature(token_ids, indices)
    assert caught.value.reason == reason


def test_tokens_after_the_span_do_not_count(prober: Prober) -> None:
    one, other = prompt(8), [*prompt(8)[:5], 1, 2, 3]
    assert np.array_equal(prober.signature(one, range(5)), prober.signature(other, range(5)))


TEMPLATES = {
    "own": None,
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "trimmed": "{% for m in messages %}[{{ m.role | upper }}] {{ m.content | trim }} [/]{% endfor %}",
}


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([Said("user", "What is 2 + 2?")], "What is 2 + 2?"),
        (
            [Said("system", "Be brief."), Said("user", "Hi"), Said("assistant", "Hello"), Said("user", "Grüße 漢字")],
            "Grüße 漢字",
        ),
        ([Said("user", "twice"), Said("assistant", "twice"), Said("user", "twice")], "twice"),
        ([Said("user", "first"), Said("assistant", "the answer repeats: first")], "first"),
        ([Said("user", "a")], "a"),
        ([Said("user", "assistant")], "assistant"),
        ([Said("user", "  spaced  ")], "spaced"),
    ],
)
def test_the_span_is_the_last_user_turns_own_tokens(template: str, messages: list[Said], expected: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATES[template] or tokenizer.chat_template
    rendered_prompt = encode_prompt(tokenizer, messages)
    token_ids, span = rendered_prompt.token_ids, rendered_prompt.span
    indices = range(span.start, span.stop)
    rendered = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in messages], tokenize=False, add_generation_prompt=True
    )
    assert tokenizer.decode(token_ids) == rendered
    assert list(indices) == list(range(indices[0], indices[-1] + 1))
    assert tokenizer.decode([token_ids[index] for index in indices]).strip() == expected
    before = tokenizer.decode(token_ids[: indices[0]])
    last_user = max(index for index, message in enumerate(messages) if message.role == "user")
    assert all(message.content.strip() in before for message in messages[:last_user])
    after = tokenizer.decode(token_ids[indices[-1] + 1 :])
    assert all(message.content.strip() in after for message in messages[last_user + 1 :])


@pytest.mark.parametrize("messages", [[], [Said("user", "  ")], [Said("system", "x")]])
def test_a_conversation_without_a_user_turn_is_refused(messages: list[Said]) -> None:
    with pytest.raises(InvalidInput):
        encode_prompt(tiny_tokenizer(), messages)
