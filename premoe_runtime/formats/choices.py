"""The choices that files, settings and answers name by the same words. Imports nothing, so that everybody may."""

from __future__ import annotations

from typing import Literal

Allocation = Literal["shared", "uniform"]
"""How a budget spreads its experts: the best of all layers together, or equally many a layer."""

Semantics = Literal["selection", "slice"]
"""What absent experts do to the combine weights: nothing, or as if their rows were cut off the router."""

OnUnknown = Literal["generalist", "full", "reject"]
"""What runs when no stored task is close enough."""

DecisionKind = Literal["specialist", "generalist", "full", "reject"]
"""What recognition decided."""

EngineName = Literal["hf", "vllm", "auto"]
"""What a worker runs on: transformers, vLLM, or vLLM where it is installed and runs the model."""
