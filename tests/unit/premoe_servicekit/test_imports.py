"""Images of the small services carry no torch, so nothing they import at start may need it."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "safetensors", "tokenizers")


@pytest.mark.parametrize("module", ["premoe_retrieval.cli", "premoe_expert_store.cli"])
def test_a_service_starts_without_torch(module: str) -> None:
    script = (
        f"import sys, {module}, premoe_retrieval.adapters.qdrant, premoe_expert_store.adapters.redis;"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
