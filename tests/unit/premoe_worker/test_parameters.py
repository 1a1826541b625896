"""Parameters counted off a manifest are those of the model."""

from __future__ import annotations

from pathlib import Path

from premoe_worker.parameters import Parameters, parameters_of
from safetensors import safe_open
from support.tiny import tiny_checkpoint

from premoe_runtime.formats.manifest import NumberSpec
from premoe_runtime.packs.source import open_source
from premoe_runtime.packs.writer import write_pack
from premoe_runtime.storage import open_store


def test_shared_and_routed_parameters_are_the_model_s_and_a_number_format_does_not_tell(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path)
    every = routed = 0
    for shard in checkpoint.glob("*.safetensors"):
        with safe_open(shard, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                count = tensors.get_tensor(name).numel()
                every += count
                routed += count * (".experts." in name)
    manifest = write_pack(open_source(str(checkpoint)), open_store(f"file://{tmp_path / 'store'}")).manifest
    found = parameters_of(manifest)
    assert found.expert == routed // manifest.num_experts
    # Headers of safetensors files count, too: much beside so small a model.
    assert every - routed <= found.shared <= 1.5 * (every - routed)
    quantised = manifest.model_copy(update={"numbers": NumberSpec(method="fp8", block=(0, 0))})
    assert parameters_of(quantised) == Parameters()
