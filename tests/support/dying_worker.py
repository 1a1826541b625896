"""A worker whose engine dies in the step after a request for ``FATAL_TOKENS`` tokens has come."""

from __future__ import annotations

FATAL_TOKENS = 13
REASON = "CUDA error: an illegal memory access was encountered"


def main() -> None:
    """Patch, then serve as any worker does."""
    from premoe_worker.cli import main as serve

    from premoe_runtime.engines.base import Submit
    from premoe_runtime.engines.hf.running import RowSequence, RunningSequences
    from premoe_runtime.engines.sequences import Sequences

    add, step = RunningSequences.add, RunningSequences.step
    doomed = False

    def noticing(self: Sequences[RowSequence], request: Submit) -> None:
        nonlocal doomed
        doomed = doomed or request.sampling.max_tokens == FATAL_TOKENS
        add(self, request)

    def dying(self: RunningSequences) -> None:
        if doomed:
            raise RuntimeError(REASON)
        step(self)

    RunningSequences.add = noticing  # type: ignore[method-assign]
    RunningSequences.step = dying  # type: ignore[method-assign]
    serve()
