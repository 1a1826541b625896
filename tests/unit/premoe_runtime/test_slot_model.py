"""Loading a slot model: what is read and allocated, what the model ends up with, what is refused."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from support.oracle import experts_of, masked_selection, random_kept, stock_logits
from support.sources import MemorySource
from support.tiny import FAMILIES, Family, tiny_checkpoint
from transformers import AutoModelForCausalLM

from premoe_runtime.engines.hf.experts import slot_experts
from premoe_runtime.engines.hf.model import SlotModel, load_slot_model
from premoe_runtime.families import registry
from premoe_runtime.formats.errors import CorruptData, InvalidInput
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.manifest import BlobField, BlobLayout
from premoe_runtime.packs.reader import open_pack
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.residency.arena import SlotArena, zeroed
from premoe_runtime.residency.swap import bring
from premoe_runtime.storage import open_store

LAYERS, EXPERTS, TOP_K = 2, 16, 4
GATE = "model.layers.1.mlp.gate.weight"
EVERYTHING = frozenset(ExpertId(layer, expert) for layer in range(LAYERS) for expert in range(EXPERTS))


def loaded(folder: Path, family: Family = "qwen3_moe", slots: int = 4, **settings: Any) -> SlotModel:
    return load_slot_model(MemorySource(tiny_checkpoint(folder, family)), slots=slots, **settings)


def memory_source(model: SlotModel) -> MemorySource:
    assert isinstance(model.source, MemorySource)
    return model.source


@pytest.mark.parametrize("family", FAMILIES)
def test_loading_reads_the_skeleton_once_and_no_expert(tmp_path: Path, family: Family) -> None:
    source = MemorySource(tiny_checkpoint(tmp_path, family))
    model = load_slot_model(source, slots=4)
    assert source.blobs_read == []
    assert source.file_bytes == sum(
        len(data) for path, data in source.files.items() if "token" not in path and "template" not in path
    )
    assert model.store.shape.device_bytes == LAYERS * 4 * source.manifest().layout.blob_bytes
    assert model.store.shape.device_bytes < source.manifest().experts_bytes / 3
    # What the model owns is the skeleton: the experts' bytes are the slot store's alone.
    owned = sum(p.numel() * p.element_size() for p in model.model.parameters())
    tensors = [load(data) for path, data in source.files.items() if path.endswith(".safetensors")]
    assert owned == sum(t.numel() * t.element_size() for file in tensors for t in file.values())
    assert not any("experts" in name for name in model.model.state_dict())


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_and_buffers_equal_the_stock_models(tmp_path: Path, family: Family) -> None:
    checkpoint = tiny_checkpoint(tmp_path, family, torch.bfloat16)
    stock = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto")
    model = load_slot_model(MemorySource(checkpoint), slots=4).model
    mine, theirs = dict(model.named_parameters()), dict(stock.named_parameters())
    assert mine.keys() == {name for name in theirs if ".experts." not in name}
    for name, parameter in mine.items():
        assert parameter.dtype == theirs[name].dtype
        assert torch.equal(parameter, theirs[name])
    buffers = dict(stock.named_buffers())
    assert dict(model.named_buffers()).keys() == buffers.keys()
    for name, buffer in model.named_buffers():
        assert buffer.dtype == buffers[name].dtype
        assert torch.equal(buffer, buffers[name])
    assert model.dtype == stock.dtype
    assert not model.training
    assert model.generation_config.to_dict() == stock.generation_config.to_dict()


def test_scaled_rotary_frequencies_are_the_configs(tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5000.0, "original_max_position_embeddings": 256}
    checkpoint = tiny_checkpoint(tmp_path, "qwen3_moe", rope_parameters=rope)
    stock = AutoModelForCausalLM.from_pretrained(checkpoint, experts_implementation="grouped_mm").requires_grad_(False)
    model = load_slot_model(MemorySource(checkpoint), slots=EXPERTS)
    bring(model.store, model.source, EVERYTHING, {0: torch.ones(LAYERS, EXPERTS, dtype=torch.bool)})
    ids = torch.arange(40)[None]
    assert torch.equal(stock_logits(model.model, ids), stock_logits(stock, ids))
    assert model.model.config.max_position_embeddings == 1024  # 4 x 256; shorter than what the config says anyway
    rope["original_max_position_embeddings"] = 1000
    longer = tiny_checkpoint(tmp_path / "longer", "qwen3_moe", rope_parameters=rope)
    assert load_slot_model(MemorySource(longer), slots=4).model.config.max_position_embeddings == 4000


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path, "qwen3_moe", tie_word_embeddings=True)
    model = load_slot_model(MemorySource(checkpoint), slots=4).model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not model.lm_head.weight.is_meta


def test_dtype_casts_skeleton_and_slots(tmp_path: Path) -> None:
    model = loaded(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in model.model.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in model.model.buffers()} == {torch.float32}
    assert model.store.arenas[0].field("down").dtype == torch.bfloat16
    assert model.store.shape.blob_bytes < model.manifest.layout.blob_bytes


def test_tokenizer_and_template_come_along(tmp_path: Path) -> None:
    tokenizer = loaded(tmp_path).tokenizer
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "2+2"}], add_generation_prompt=True)["input_ids"]
    assert tokenizer.decode(ids) == "<|user|>2+2<|assistant|>"


@pytest.mark.parametrize(
    "fields",
    [
        {"extra_special_tokens": ["<|end|>"]},
        {"extra_special_tokens": {"stop_token": "<|end|>"}},
        {"additional_special_tokens": ["<|end|>"]},
    ],
)
def test_special_tokens_under_every_name_they_have_had(tmp_path: Path, fields: dict[str, object]) -> None:
    source = MemorySource(tiny_checkpoint(tmp_path, "qwen3_moe"))
    path = "skeleton/tokenizer_config.json"
    told = json.loads(source.files[path]) | fields
    tokenizer = load_slot_model(edited(source, path, json.dumps(told).encode()), slots=4).tokenizer
    assert tokenizer.encode("<|end|>", add_special_tokens=False) == [260]


def test_recorder_sees_every_layer_of_every_forward(tmp_path: Path) -> None:
    model = loaded(tmp_path, slots=EXPERTS)
    kept = random_kept(1, LAYERS, EXPERTS, 6)[0]
    bring(model.store, model.source, EVERYTHING, {0: kept})
    seen: list[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]] = []
    model.record(lambda *call: seen.append(call))
    stock_logits(model.model, torch.arange(30).reshape(3, 10))
    model.record(None)
    stock_logits(model.model, torch.arange(30).reshape(3, 10))
    assert [layer for layer, *_ in seen] == [0, 1]
    for layer, logits, ids, weights in seen:
        assert logits.shape == (30, EXPERTS)
        assert logits.dtype == torch.float32
        assert ids.shape == weights.shape == (30, TOP_K)
        assert kept[layer][ids].all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(30))


def test_retained_mass_is_the_full_routers_share(tmp_path: Path) -> None:
    model = loaded(tmp_path, slots=EXPERTS)
    patterns = random_kept(2, LAYERS, EXPERTS, 6)
    bring(model.store, model.source, EVERYTHING, {0: patterns[0], 1: torch.ones(LAYERS, EXPERTS, dtype=torch.bool)})
    logits: list[torch.Tensor] = []
    model.record(lambda layer, values, ids, weights: logits.append(values))
    rows = torch.tensor([0] * 12 + [1] * 12)
    with model.steps(rows.tolist()):
        stock_logits(model.model, torch.arange(24).reshape(2, 12))
        mass = model.retained_mass()
    shares = [
        torch.softmax(values, -1).masked_fill(~patterns[0, layer], 0).sum(-1) for layer, values in enumerate(logits)
    ]
    torch.testing.assert_close(mass[:12], torch.stack(shares).mean(0)[:12])
    torch.testing.assert_close(mass[12:], torch.ones(12))
    assert float(mass[:12].max()) < 1


def test_steps_for_another_number_of_tokens_is_refused(tmp_path: Path) -> None:
    model = loaded(tmp_path)
    model.steps([0] * 7)
    with pytest.raises(InvalidInput, match="set for 7 tokens, but the forward has 8"):
        stock_logits(model.model, torch.arange(8)[None])
    with model.steps([0] * 8):
        stock_logits(model.model, torch.arange(8)[None])
    stock_logits(model.model, torch.arange(9)[None])


def edited(source: MemorySource, path: str, data: bytes) -> MemorySource:
    source.files[path] = data
    return source


def test_a_skeleton_with_a_missing_tensor_is_refused(tmp_path: Path) -> None:
    source = MemorySource(tiny_checkpoint(tmp_path, "qwen3_moe"))
    path = next(path for path, data in source.files.items() if path.endswith("s") and "model.norm.weight" in load(data))
    tensors = load(source.files[path])
    del tensors["model.norm.weight"]
    with pytest.raises(CorruptData, match=r"skeleton lacks model.norm.weight \(1 tensors"):
        load_slot_model(edited(source, path, save(tensors)), slots=4)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ({"model.norm.weight": torch.zeros(63)}, r"has shape \[63\], by its config.json \[64\]"),
        ({"model.layers.0.mlp.surprise": torch.zeros(1)}, "which is no tensor of its model"),
        ({"model.layers.9.mlp.gate.weight": torch.zeros(1)}, "which is no tensor of its model"),
    ],
)
def test_a_skeleton_that_does_not_fit_the_config_is_refused(
    tmp_path: Path, tensor: dict[str, torch.Tensor], message: str
) -> None:
    source = MemorySource(tiny_checkpoint(tmp_path, "qwen3_moe"))
    path = next(path for path in source.files if path.endswith(".safetensors"))
    with pytest.raises(CorruptData, match=message):
        load_slot_model(edited(source, path, save(load(source.files[path]) | tensor)), slots=4)


@pytest.mark.parametrize("keep", [3, 9, 200, -1])
def test_a_cut_off_skeleton_file_is_refused(tmp_path: Path, keep: int) -> None:
    source = MemorySource(tiny_checkpoint(tmp_path, "qwen3_moe"))
    path = next(path for path in source.files if path.endswith(".safetensors"))
    with pytest.raises(CorruptData, match=f"{path}: the (file has only|header claims|tensors end)"):
        load_slot_model(edited(source, path, source.files[path][:keep]), slots=4)


def test_a_config_of_another_shape_is_refused(tmp_path: Path) -> None:
    source = MemorySource(tiny_checkpoint(tmp_path, "qwen3_moe"))
    config = json.loads(source.files["skeleton/config.json"])
    for change, message in (
        ({"moe_intermediate_size": 48}, "its blobs are not as its config.json says"),
        ({"mlp_only_layers": [1]}, r"its list of MoE blocks is \[0, 1\], that of its config.json is \[0\]"),
    ):
        changed = edited(source, "skeleton/config.json", json.dumps(config | change).encode())
        with pytest.raises(CorruptData, match=message):
            load_slot_model(changed, slots=4)


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("config.json", {"rms_norm_eps": None}),
        ("config.json", {"hidden_act": "nope"}),
        ("config.json", {"max_position_embeddings": "x"}),
        ("generation_config.json", None),
    ],
)
def test_what_transformers_refuses_is_one_line(tmp_path: Path, path: str, data: dict[str, object] | None) -> None:
    source = MemorySource(tiny_checkpoint(tmp_path, "qwen3_moe"))
    config = json.loads(source.files["skeleton/config.json"])
    content = b"{broken" if data is None else json.dumps(config | data).encode()
    with pytest.raises(InvalidInput, match=r"transformers refuses the config|is not JSON") as error:
        load_slot_model(edited(source, f"skeleton/{path}", content), slots=4)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_router_that_is_stored_wider_stays_so(tmp_path: Path, family: Family) -> None:
    """Against the stock class with the same float32 routers, which are given float32 hidden states."""
    checkpoint = tiny_checkpoint(tmp_path, family, torch.bfloat16)
    wide = {}
    for shard in checkpoint.glob("*.safetensors"):
        tensors = load(shard.read_bytes())
        for name in [name for name in tensors if name.endswith(".gate.weight")]:
            tensors[name] = tensors[name].float() + 1e-5 * torch.randn(tensors[name].shape)
            wide[name.replace("block_sparse_moe", "mlp")] = tensors[name]
        shard.write_bytes(save(tensors, {"format": "pt"}))
    model = load_slot_model(MemorySource(checkpoint), slots=EXPERTS)
    bring(model.store, model.source, EVERYTHING, {0: torch.ones(LAYERS, EXPERTS, dtype=torch.bool)})
    stock = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16, experts_implementation="grouped_mm")
    stock.eval().requires_grad_(False)
    assert len(wide) == LAYERS
    for name, tensor in wide.items():
        assert torch.equal(model.model.get_parameter(name), tensor)
        router = stock.get_submodule(name.removesuffix(".weight"))
        router.weight = torch.nn.Parameter(tensor, requires_grad=False)
        router.register_forward_pre_hook(lambda module, inputs: tuple(one.float() for one in inputs))
    assert {p.dtype for name, p in model.model.named_parameters() if name not in wide} == {torch.bfloat16}
    ids = torch.arange(60).reshape(2, 30)
    logits = stock_logits(model.model, ids)
    assert logits.dtype == torch.bfloat16
    assert torch.equal(logits, stock_logits(stock, ids))


def test_a_dtype_for_everything_narrows_no_router_that_is_wider_than_the_experts(tmp_path: Path) -> None:
    source = MemorySource(tiny_checkpoint(tmp_path, "qwen3_moe", torch.bfloat16))
    path = next(path for path, data in source.files.items() if path.endswith("s") and GATE in load(data))
    data = save(load(source.files[path]) | {GATE: torch.ones(EXPERTS, 64)})
    for dtype, expected in ((torch.float16, torch.float32), (torch.float32, torch.float32)):
        model = load_slot_model(edited(source, path, data), slots=4, dtype=dtype).model
        assert model.get_parameter(GATE).dtype == expected
        assert model.lm_head.weight.dtype == dtype


def test_additional_chat_templates_survive_packing_and_loading(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path, "qwen3_moe")
    (checkpoint / "additional_chat_templates").mkdir()
    (checkpoint / "additional_chat_templates/tool_use.jinja").write_text("tools: {{ messages[0]['content'] }}")
    packed = write_pack(open_source(str(checkpoint)), open_store((tmp_path / "store").as_uri()))
    for source in (MemorySource(checkpoint), open_pack(packed.url)):
        tokenizer = load_slot_model(source, slots=4).tokenizer
        turns = [{"role": "user", "content": "2+2"}]
        render = partial(tokenizer.apply_chat_template, turns, tokenize=False)
        assert render(chat_template="tool_use") == "tools: 2+2"
        assert render(add_generation_prompt=True) == "<|user|>2+2<|assistant|>"


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_pack_that_asks_for_code_of_its_own_is_refused(tmp_path: Path, file: str) -> None:
    source = MemorySource(tiny_checkpoint(tmp_path, "qwen3_moe"))
    path = f"skeleton/{file}"
    fields = json.loads(source.files[path]) | {"auto_map": {"AutoTokenizer": ["evil.Tok", None]}}
    with pytest.raises(InvalidInput, match=rf"{path}: auto_map .* never run") as error:
        _ = load_slot_model(edited(source, path, json.dumps(fields).encode()), slots=4).tokenizer
    assert error.value.reason == "REMOTE_CODE"


def test_a_router_answers_in_the_order_of_its_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, hidden = MemorySource(tiny_checkpoint(tmp_path, "olmoe")), torch.randn(3, 64)
    plain = load_slot_model(source, slots=4).model.model.layers[0].mlp.gate(hidden)
    spec = replace(registry.FAMILIES["olmoe"], router_returns=("ids", "weights", "logits"))
    monkeypatch.setattr(registry, "FAMILIES", {"olmoe": spec})
    turned = load_slot_model(source, slots=4).model.model.layers[0].mlp.gate(hidden)
    assert all(torch.equal(one, other) for one, other in zip(turned, reversed(plain), strict=True))


@pytest.mark.parametrize("fields", ["gate_up down_proj", "gate_up down scale", "gate_up"])
def test_a_layout_that_no_kernel_runs_is_refused(fields: str) -> None:
    layout = BlobLayout(
        fields=tuple(
            BlobField(name=name, dtype="F32", shape=(8, 8), offset=256 * index)
            for index, name in enumerate(fields.split())
        ),
        blob_bytes=4096,
    )
    with pytest.raises(InvalidInput, match="no kernel runs expert blobs of gate_up F32") as error:
        slot_experts(SlotArena(2, layout, torch.device("cpu")), torch.nn.Module())
    assert error.value.reason == "BLOB_LAYOUT_UNSUPPORTED"


def test_a_broken_or_missing_tokenizer_is_one_line(tmp_path: Path) -> None:
    source = MemorySource(tiny_checkpoint(tmp_path, "qwen3_moe"))
    broken = edited(source, "skeleton/tokenizer.json", b"[[[[")
    with pytest.raises(InvalidInput, match="transformers refuses the tokenizer"):
        _ = load_slot_model(broken, slots=4).tokenizer
    source = MemorySource(tiny_checkpoint(tmp_path / "other", "qwen3_moe"))
    manifest = source.manifest()
    left = tuple(file for file in manifest.skeleton if "token" not in file.path)
    assert len(left) < len(manifest.skeleton)
    source._manifest = manifest.model_copy(update={"skeleton": left})
    with pytest.raises(InvalidInput, match="the pack has no tokenizer"):
        _ = load_slot_model(source, slots=4).tokenizer


def test_an_unknown_family_is_refused(tmp_path: Path) -> None:
    source = MemorySource(tiny_checkpoint(tmp_path, "qwen3_moe"))
    source._manifest = source.manifest().model_copy(update={"family": "kimi_k2"})
    with pytest.raises(
        InvalidInput,
        match=r"family 'kimi_k2' cannot be run; supported: deepseek_v2, .*olmoe, phimoe, qwen2_moe, qwen3_moe",
    ):
        load_slot_model(source, slots=4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_real_pack_reads_the_skeleton_and_the_resident_blobs_only(tmp_path: Path, family: Family) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", family, torch.bfloat16)
    packed = write_pack(open_source(str(checkpoint)), open_store((tmp_path / "store").as_uri()))
    source = open_pack(packed.url)
    model = load_slot_model(source, slots=8)
    kept = random_kept(1, LAYERS, EXPERTS, 7)
    bring(model.store, source, experts_of(kept), {0: kept[0]})
    model.store.check_integrity()
    manifest = model.manifest
    needed = manifest.skeleton_bytes + len(model.store.resident()) * manifest.layout.blob_bytes
    assert source.bytes_read <= needed + len(manifest.to_json()) + manifest.checks.num_bytes
    stock = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto", experts_implementation="grouped_mm")
    ids = torch.arange(60).reshape(2, 30)
    with masked_selection(kept, torch.zeros(1, dtype=torch.int64)) as seen:
        expected = stock_logits(stock.eval().requires_grad_(False), ids)
    assert seen.share_changed >= 0.3
    assert torch.equal(stock_logits(model.model, ids), expected)


def test_large_arenas_take_memory_only_for_written_slots() -> None:
    arena = zeroed(1024, 1 << 20, torch.device("cpu"))
    before = resident_bytes()
    assert arena.shape == (1024, 1 << 20)
    arena[3].fill_(1)
    arena[700].fill_(1)
    assert resident_bytes() - before < 64 << 20
    assert int(arena[2, -1]) == 0
    assert int(arena[4, 0]) == 0


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * int(os.sysconf("SC_PAGE_SIZE"))
