"""A pack's tokenizer, as transformers makes it of the skeleton's small files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from premoe_runtime.families import stock
from premoe_runtime.families.registry import parse_json_object, refuse_remote_code
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.packs.source import has_vocabulary
from premoe_runtime.residency.source import ExpertSource

TOKENIZER_CONFIG_FILE = "skeleton/tokenizer_config.json"


def load_tokenizer(source: ExpertSource) -> PreTrainedTokenizerBase:
    """The checkpoint's own tokenizer and chat template. Raises InvalidInput: there is none, or it is broken."""
    files = [file.path for file in source.manifest().skeleton]
    # Without files transformers makes an empty tokenizer, which knows no word.
    if not has_vocabulary([path.removeprefix("skeleton/") for path in files]):
        raise InvalidInput("the pack has no tokenizer; pack a checkpoint with one", reason="TOKENIZER_MISSING")
    if TOKENIZER_CONFIG_FILE in files:
        data = parse_json_object(source.read_file(TOKENIZER_CONFIG_FILE), TOKENIZER_CONFIG_FILE)
        refuse_remote_code(data, TOKENIZER_CONFIG_FILE)
    with skeleton_folder(source) as folder, stock.refusals("tokenizer", "skeleton"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    return tokenizer


@contextmanager
def skeleton_folder(source: ExpertSource) -> Iterator[Path]:
    """A folder with the skeleton's small files (config, tokenizer, templates), as transformers wants to read them."""
    with tempfile.TemporaryDirectory(prefix="premoe-") as name:
        for file in source.manifest().skeleton:
            if file.path.endswith(".safetensors"):
                continue
            place = Path(name, *PurePosixPath(file.path).parts[1:])
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(source.read_file(file.path))
        yield Path(name)
