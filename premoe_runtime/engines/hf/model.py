"""A stock transformers model whose routed experts live in slots and whose routers are restricted to them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import TracebackType

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from premoe_runtime.engines.hf.experts import SlotExperts
from premoe_runtime.engines.hf.modelling import MoeBlock, modelling_of
from premoe_runtime.engines.hf.router import Recorder, RestrictedRouter, StepState
from premoe_runtime.engines.hf.skeleton import fill_skeleton
from premoe_runtime.formats.errors import InvalidInput, PremoeError
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.residency.bank import ExpertBank
from premoe_runtime.residency.slot_layout import torch_dtype
from premoe_runtime.residency.source import ExpertSource

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


class Steps:
    """Returned by ``SlotModel.steps``: already in force; as a context it falls back to row 0 at the end."""

    def __init__(self, state: StepState, top_k: int) -> None:
        self._state, self._top_k = state, top_k

    def __enter__(self) -> Steps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._state.set(0, self._top_k)


class SlotModel:
    """The model, its bank, and what the coming forward runs under. One thread at a time.

    Call ``model`` as any transformers causal LM: padded batches, 4-D masks and caches are its own affair; every token
    of ``input_ids`` (padding included, row-major) has its entry in ``steps``.
    """

    def __init__(self, model: PreTrainedModel, bank: ExpertBank, state: StepState, source: ExpertSource) -> None:
        self.model = model
        self.bank = bank
        self.source = source
        self._state = state

    @property
    def manifest(self) -> Manifest:
        return self.bank.manifest

    @property
    def device(self) -> torch.device:
        return self.bank.device

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's own tokenizer and chat template. Raises InvalidInput: there is none, or it is broken."""
        # Without files transformers makes an empty tokenizer, which knows no word.
        if not any(PurePosixPath(file.path).name in _VOCABULARIES for file in self.manifest.skeleton):
            raise InvalidInput("the pack has no tokenizer; pack a checkpoint with one", reason="TOKENIZER_MISSING")
        with _skeleton_folder(self.source) as folder, _refusals("tokenizer"):
            return AutoTokenizer.from_pretrained(folder)

    def steps(self, rows: torch.Tensor | int, active: torch.Tensor | int | None = None) -> Steps:
        """Fix mask row (i64[T]) and number of active experts (i64[T], default top-k) of each flattened token.

        Holds for the coming forwards until it is called again; plain ints fit any number of tokens. Usable as a
        context. Raises InvalidInput for lengths that differ and for ``active`` outside 1..top-k; a forward over
        another number of tokens than T raises it too.
        """
        top_k = self.manifest.top_k
        self._state.set(rows, top_k if active is None else active)
        return Steps(self._state, top_k)

    def retained_mass(self) -> torch.Tensor:
        """f32[T] of the last forward: the full router's probability mass on kept experts, mean over MoE layers."""
        return self._state.retained_mass()

    def record(self, recorder: Recorder | None) -> None:
        """Call ``recorder(layer, logits f32[T, E], ids i64[T, k], weights [T, k])`` per MoE layer; None ends it.

        ``ids`` are expert ids, ranked; E stands for "no expert".
        """
        self._state.recorder = recorder


def load_slot_model(
    source: ExpertSource,
    *,
    slots: int | Sequence[int],
    max_rows: int = 64,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    host_bytes: int | None = None,
) -> SlotModel:
    """Build the stock class on the meta device, put slots and restricted routers in, and fill the skeleton.

    ``slots``: one number for all MoE layers, or one for each; no expert is read or allocated beyond them. ``dtype``
    casts everything, blobs on arrival; default: the checkpoint's own. ``host_bytes`` bounds the host tier (default:
    staging room only). All mask rows start empty. Raises InvalidInput, CorruptData, Exhausted, and what the source
    raises.
    """
    manifest = source.manifest()
    modelling = modelling_of(manifest.family)
    with _skeleton_folder(source) as folder, _refusals("config"):
        config = AutoConfig.from_pretrained(folder)
        generation = folder / "generation_config.json"
        generation_config = GenerationConfig.from_pretrained(folder) if generation.exists() else None
    config.output_router_logits = False
    config._attn_implementation = "sdpa"
    with torch.device("meta"), _refusals("config"):
        model = modelling.model_class(config)
    bank = ExpertBank(manifest, slots=slots, max_rows=max_rows, device=device, dtype=dtype, host_bytes=host_bytes)
    state = StepState(bank.num_layers, manifest.top_k, bank.device)
    for layer, entry in enumerate(manifest.layers):
        block = modelling.moe_block(model, entry.block)
        experts = SlotExperts(bank.arenas[layer], block.experts.act_fn)
        _check_fit(block, experts, manifest, layer)
        block.experts = experts
        block.gate = RestrictedRouter(layer, manifest.router, manifest.top_k, block.gate.weight, bank, state)
    model_dtype = dtype or torch_dtype(manifest.dtype)
    fill_skeleton(model, modelling, source, device=bank.device, dtype=model_dtype)
    config.dtype = model_dtype
    if generation_config is not None:
        model.generation_config = generation_config
    model.eval()
    return SlotModel(model, bank, state, source)


def _check_fit(block: MoeBlock, experts: SlotExperts, manifest: Manifest, layer: int) -> None:
    stock = block.experts
    fits = block.gate.weight.shape == (manifest.num_experts, manifest.hidden_size) and all(
        getattr(stock, name).shape[1:] == getattr(experts, name).shape[1:] for name in ("gate_up_proj", "down_proj")
    )
    if not fits:
        raise InvalidInput(
            f"MoE layer {layer} of the pack does not have the shapes that its config.json says", reason="PACK_MISMATCH"
        )


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """Make one line of whatever transformers raises for files that it cannot use."""
    try:
        yield
    except PremoeError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InvalidInput(
            f"transformers refuses the pack's {what}: {reason}; correct the checkpoint and pack it again",
            reason=f"{what.upper()}_REFUSED",
        ) from error


@contextmanager
def _skeleton_folder(source: ExpertSource) -> Iterator[Path]:
    """A folder with the skeleton's small files (config, tokenizer, template), as transformers wants to read them."""
    with tempfile.TemporaryDirectory(prefix="premoe-") as name:
        folder = Path(name)
        for file in source.manifest().skeleton:
            if not file.path.endswith(".safetensors"):
                (folder / PurePosixPath(file.path).name).write_bytes(source.read_file(file.path))
        yield folder
