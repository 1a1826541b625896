"""The plan of one model's slots, as it reaches vLLM's workers: in ``additional_config``, under a key of ours."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from premoe_runtime.engines.vllm.coverage import check_covered
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.residency.ledger import slots_of_layers

KEY = "premoe"
LOAD_FORMAT = "premoe"
"""Name of our loader among vLLM's load formats."""
ROW, ACTIVE = "premoe_row", "premoe_active"
"""Keys of a request's mask row, and of how many experts its tokens use, in the extra arguments of its sampling
parameters; without them it is under row 0, and uses the model's top-k.
"""


class SlotPlan(BaseModel):
    """Few and stable values: vLLM makes them part of the key of its compile cache."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pack: Annotated[str, Field(min_length=1)]
    """URL of the pack, as vLLM's workers open it, or of a source in this process (``sources.lend``)."""
    slots: tuple[Annotated[int, Field(ge=2)], ...]
    """Of every MoE layer."""
    blocks: tuple[Annotated[int, Field(ge=0)], ...]
    """Transformer blocks of these layers."""
    rows: Annotated[int, Field(ge=1)] = 64
    """Of the mask table."""
    active: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Numbers of experts that tokens may use; none: any, or the model's top-k alone where it is compiled."""

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        slots: int | Sequence[int],
        *,
        pack: str,
        rows: int = 64,
        active: Collection[int] = (),
    ) -> SlotPlan:
        """``slots``: one number for all MoE layers, or one for each. Raises InvalidInput."""
        check_covered(manifest)
        counts = slots_of_layers(slots, manifest.layer_experts)
        blocks = tuple(layer.block for layer in manifest.layers)
        return cls(pack=pack, slots=counts, blocks=blocks, rows=rows, active=tuple(sorted(set(active))))

    def config(self) -> dict[str, Any]:
        """As a value of vLLM's ``additional_config``."""
        return {KEY: self.model_dump(mode="json")}

    def layer_of(self, block: int) -> int:
        """The MoE layer in a transformer block. Raises InvalidInput where the plan has none."""
        if block not in self.blocks:
            raise InvalidInput(
                f"vLLM makes experts in block {block}, but the pack has none there; pack the model again",
                reason="PLAN_INVALID",
            )
        return self.blocks.index(block)


def plan_in(additional_config: object) -> SlotPlan | None:
    """The plan in a vLLM configuration; None: this engine has nothing to do with slots. Raises InvalidInput."""
    if not isinstance(additional_config, Mapping) or KEY not in additional_config:
        return None
    try:
        return SlotPlan.model_validate(additional_config[KEY])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in (KEY, *first["loc"]))
        raise InvalidInput(f"additional_config: {where}: {first['msg']}", reason="PLAN_INVALID") from error
