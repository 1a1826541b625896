"""One MoE layer's weights as tensors in float32, read from a pack and written into blobs again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import blake3
import torch
from torch import Tensor

from premoe_runtime.engines.hf.skeleton import bytes_of, empty_tensor
from premoe_runtime.families.registry import read_model
from premoe_runtime.families.spec import MoeModel
from premoe_runtime.formats.errors import CorruptData, InvalidInput
from premoe_runtime.formats.ids import ExpertId
from premoe_runtime.formats.manifest import BlobLayout
from premoe_runtime.numbers.registry import numbers_of
from premoe_runtime.packs.checkpoint import read_header
from premoe_runtime.packs.consistency import contradiction, refuse, skeleton_contradiction
from premoe_runtime.packs.contents import TensorInfo
from premoe_runtime.packs.reader import PackReader
from premoe_runtime.residency.blob_fields import field_view, torch_dtype

CONFIG_FILE = "skeleton/config.json"
Part = TypeVar("Part", "ExpertWeights", "RouterWeights")


@dataclass(frozen=True, slots=True, eq=False)
class ExpertWeights:
    """The E experts of a layer, I neurons each: f32 ``gate`` and ``up`` [E, I, H], ``down`` [E, H, I].

    Biases, where the family has them: ``gate_bias`` and ``up_bias`` [E, I], ``down_bias`` [E, H].
    """

    gate: Tensor
    up: Tensor
    down: Tensor
    gate_bias: Tensor | None = None
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None

    @property
    def count(self) -> int:
        return len(self.gate)

    @property
    def width(self) -> int:
        return self.gate.shape[1]

    def field(self, name: str) -> Tensor:
        """A blob's field of all experts. Raises InvalidInput: this has no such field."""
        if name == "gate_up":
            return torch.cat([self.gate, self.up], dim=1)
        if name == "down":
            return self.down
        if name == "gate_up_bias" and self.gate_bias is not None and self.up_bias is not None:
            return torch.cat([self.gate_bias, self.up_bias], dim=1)
        if name == "down_bias" and self.down_bias is not None:
            return self.down_bias
        raise InvalidInput(f"no method makes expert blobs with {name}", reason="BLOB_LAYOUT_UNSUPPORTED")


@dataclass(frozen=True, slots=True, eq=False)
class RouterWeights:
    """A layer's router: f32 ``weight`` [E, H], and ``biases`` [..., E] in the order of ``MoeModel.router_biases``."""

    weight: Tensor
    biases: tuple[Tensor, ...] = ()


def rows(part: Part, index: Tensor | Sequence[int]) -> Part:
    """Some experts of a layer, or the router's rows of them, in this order."""
    chosen = torch.as_tensor(index, dtype=torch.long)
    if isinstance(part, RouterWeights):
        return RouterWeights(part.weight[chosen], tuple(bias[..., chosen] for bias in part.biases))
    biases = (None if one is None else one[chosen] for one in (part.gate_bias, part.up_bias, part.down_bias))
    return ExpertWeights(part.gate[chosen], part.up[chosen], part.down[chosen], *biases)


class PackWeights:
    """A pack's weights, a layer or a tensor at a time; skeleton files are held against their digests first.

    Raises InvalidInput for a family or number format that cannot be taken, CorruptData for a damaged pack.
    """

    def __init__(self, reader: PackReader) -> None:
        self.reader = reader
        self.manifest = reader.manifest()
        if self.manifest.numbers is not None:
            raise InvalidInput(
                f"{reader.url}: its weights are stored as {numbers_of(self.manifest.numbers).title}, and weights that "
                "are computed anew need 16 or 32 bits; pack the model in bfloat16 and compress that",
                reason="NUMBERS_UNSUPPORTED",
            )
        self.config = reader.read_file(CONFIG_FILE)
        model = read_model(self.config)
        refuse(contradiction(self.manifest, model))
        self.model: MoeModel = model.cut_to(self.manifest.layer_experts)
        self.tensors = self._skeleton()

    def _skeleton(self) -> dict[str, TensorInfo]:
        found: list[TensorInfo] = []
        for file in self.manifest.skeleton:
            if file.path.endswith(".safetensors"):
                self.reader.check_file(file)
                found += read_header(self.reader.store, self.reader.path(file.path), file.num_bytes)
        refuse(skeleton_contradiction(self.manifest, self.model, found))
        return {tensor.name: tensor for tensor in sorted(found, key=lambda tensor: tensor.name)}

    def tensor(self, name: str) -> Tensor:
        """A skeleton tensor, as it is stored."""
        entry = self.tensors[name]
        tensor = empty_tensor(entry)
        self.reader.store.read_into(entry.file, entry.offset, [bytes_of(tensor)])
        return tensor

    @property
    def routers(self) -> frozenset[str]:
        """Names of all routers' tensors."""
        return frozenset((*self.model.routers, *(name for names in self.model.router_biases for name in names)))

    def router(self, layer: int, read: Callable[[str], Tensor] | None = None) -> RouterWeights:
        """Of a MoE layer; ``read`` gives its tensors by name: by default those of the pack."""
        read = read or self.tensor
        biases = tuple(read(name).float() for name in self.model.router_biases[layer])
        return RouterWeights(read(self.model.routers[layer]).float(), biases)

    def experts(self, layer: int) -> ExpertWeights:
        """All experts of a MoE layer, digests checked. Raises CorruptData, Unavailable."""
        layout, count = self.manifest.layout, self.manifest.layer_experts[layer]
        blobs = torch.zeros(count, layout.blob_bytes, dtype=torch.uint8)
        room = [bytes_of(blob) for blob in blobs]

        def done(expert: ExpertId, checked: bool) -> None:
            if not checked and blake3.blake3(room[expert.expert]).hexdigest() != self.manifest.digest(expert):
                raise CorruptData(
                    f"pack {self.reader.url}: {expert} does not match its digest; look for damage with `premoe pack "
                    "verify`",
                    reason="BAD_DIGEST",
                )

        self.reader.fetch([ExpertId(layer, expert) for expert in range(count)], lambda one: room[one.expert], done)
        return from_blobs(blobs, layout)


def from_blobs(blobs: Tensor, layout: BlobLayout) -> ExpertWeights:
    """The experts in u8[E, blob_bytes]. Raises InvalidInput for blobs that no method takes."""
    names = {field.name for field in layout.fields}
    if not {"gate_up", "down"} <= names <= {"gate_up", "down", "gate_up_bias", "down_bias"}:
        raise InvalidInput(
            f"no method takes expert blobs of {', '.join(sorted(names))}", reason="BLOB_LAYOUT_UNSUPPORTED"
        )
    gate, up = field_view(blobs, layout, "gate_up").float().chunk(2, dim=1)
    gate_bias = up_bias = down_bias = None
    if "gate_up_bias" in names:
        gate_bias, up_bias = field_view(blobs, layout, "gate_up_bias").float().chunk(2, dim=1)
        down_bias = field_view(blobs, layout, "down_bias").float()
    return ExpertWeights(gate, up, field_view(blobs, layout, "down").float(), gate_bias, up_bias, down_bias)


def to_blobs(experts: ExpertWeights, layout: BlobLayout) -> Tensor:
    """u8[E, blob_bytes]: rounded to the dtypes of the layout, padding zero."""
    blobs = torch.zeros(experts.count, layout.blob_bytes, dtype=torch.uint8)
    for field in layout.fields:
        field_view(blobs, layout, field.name).copy_(experts.field(field.name).to(torch_dtype(field.dtype)))
    return blobs


def stored(tensor: Tensor, dtype: str) -> memoryview:
    """The bytes of a tensor, rounded to a stored dtype."""
    return bytes_of(tensor.to(torch_dtype(dtype)).contiguous())
