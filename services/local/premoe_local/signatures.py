"""Signatures of prompts out of a file, by the part of the model that a probe reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from premoe_local.console import progress
from premoe_runtime.offline.calibration import Answers, PassedOver, read_calibration

if TYPE_CHECKING:
    from premoe_runtime.formats.arrays import F32
    from premoe_runtime.packs.reader import PackReader

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
    found = []
    with progress("probing", total=len(examples)) as bar:
        for example in examples:
            prompt = encode_prompt(tokenizer, example.messages)
            found.append(prober.signature(prompt.token_ids, range(prompt.span.start, prompt.span.stop)))
            bar.advance()
    return np.stack(found)
