"""Signatures of prompts out of files, by the part of the model that a probe reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from premoe_local.console import progress
from premoe_runtime.offline.calibration import Answers, Example, PassedOver, read_calibration

if TYPE_CHECKING:
    from premoe_runtime.engines.hf.model import SlotModel
    from premoe_runtime.formats.arrays import F32
    from premoe_runtime.offline.prompts import Prompt
    from premoe_runtime.packs.reader import PackReader
    from premoe_runtime.probing.prober import Prober

_ANSWERS: Answers = "none"


def signatures_of(reader: PackReader, file: Path, unused: PassedOver) -> F32:
    """f32[N, E] of the file's prompts. Raises InvalidInput, NotFound, and what the model's loading raises."""
    examples = read_calibration(file, answers=_ANSWERS, passed_over=unused)
    # Torch is slow to import, so faults in the file are reported first.
    import torch

    from premoe_runtime.engines.hf.tokenizer import load_tokenizer
    from premoe_runtime.offline.prompts import encode_prompt
    from premoe_runtime.probing.prober import Prober
    from premoe_runtime.probing.weights import load_probing_model

    tokenizer = load_tokenizer(reader)
    prober = Prober(load_probing_model(reader, dtype=torch.float32), reader.manifest())
    return _probed(prober, [encode_prompt(tokenizer, example.messages) for example in examples])


def signatures_by_task(model: SlotModel, data: Mapping[str, Sequence[Example]]) -> dict[str, F32]:
    """f32[N, E] of each task's prompts that fit the model. Raises InvalidInput: a task without any."""
    from premoe_runtime.engines.hf.blocks import BlockModel
    from premoe_runtime.offline.profile.samples import encode_examples
    from premoe_runtime.probing.prober import Prober
    from premoe_runtime.probing.weights import load_probing_model

    probed = model.model
    if isinstance(model, BlockModel):  # a probe may go through several blocks, and it has one at a time
        probed = load_probing_model(model.source, device=model.device, dtype=model.model.dtype)
    prober = Prober(probed, model.manifest)
    return {
        task: _probed(prober, [one.prompt for one in encode_examples(model, examples, answers="given", where=task)])
        for task, examples in data.items()
    }


def _probed(prober: Prober, prompts: Sequence[Prompt]) -> F32:
    found = []
    with progress("probing", total=len(prompts)) as bar:
        for prompt in prompts:
            found.append(prober.signature(prompt.token_ids, range(prompt.span.start, prompt.span.stop)))
            bar.advance()
    return np.stack(found)
