"""The entry point: vLLM calls ``register`` in each of its processes, more than once, whatever it is going to serve."""

from __future__ import annotations

import logging

from premoe_runtime.engines.vllm import compat
from premoe_runtime.formats.errors import InvalidInput

logger = logging.getLogger(__name__)
_done: list[bool] = []


def register() -> None:
    """Teach vLLM slots. An engine without a plan stays as it is; with a vLLM that does not fit, all of them do.

    Then the load format ``premoe`` is unknown, so that no engine over slots starts.
    """
    if _done:
        return
    _done.append(True)
    try:
        compat.check(compat.version())
    except InvalidInput as error:
        logger.warning("PreMoE's plug-in stays off: %s", error)
        return
    from premoe_runtime.engines.vllm import loader, runner  # noqa: F401  # the loader registers itself

    runner.hook_runners()
