"""Engines of vLLM in a process of their own: over slots with our plug-in, or stock and masked from outside.

    python -m support.vllm_engines JOBS.json ANSWERS.json

Tests describe jobs by ``slots`` and ``stock`` and call ``run``, which starts that process; what runs in it is below
``main``. vLLM is imported there only, so that its threads, warnings and global state stay there.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections import ChainMap
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

NEW_TOKENS, TOP_LOGPROBS, KV_BYTES = 16, 20, 128 << 20
SECONDS = 1500
"""Bound on a process that only a bug would reach."""
QUIET = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
Kept = Sequence[Sequence[int]]
"""Kept experts of every MoE layer."""


class Answer(NamedTuple):
    """Of one request: its tokens, and at every place the log probabilities of the likeliest tokens."""

    tokens: list[int]
    logprobs: list[dict[str, float]]

    def difference(self, other: Answer) -> float:
        """Largest one of log probabilities; infinite where tokens or the tokens listed differ."""
        if self.tokens != other.tokens or [*map(set, self.logprobs)] != [*map(set, other.logprobs)]:
            return float("inf")
        pairs = zip(self.logprobs, other.logprobs, strict=True)
        return max(abs(mine[token] - theirs[token]) for mine, theirs in pairs for token in mine)


class Request(NamedTuple):
    """``row``: of the mask table."""

    tokens: Sequence[int]
    row: int = 0


def bring(rows: Mapping[int, Kept], pinned: Kept = ()) -> dict[str, Any]:
    """A stage: put these rows in force. Answers the slot table, or {"error": …}."""
    return {"do": "bring", "rows": {str(row): kept for row, kept in rows.items()}, "pinned": pinned}


def generate(requests: Sequence[Request], *, after: int = 0, swap: dict[str, Any] | None = None) -> dict[str, Any]:
    """A stage: run these in one batch, ``swap`` (a ``bring``) behind ``after`` steps. Answers their ``Answer``."""
    return {"do": "generate", "requests": requests, "after": after, "swap": swap}


CHECK, ADDRESSES, WEIGHT_BYTES = ({"do": name} for name in ("check", "addresses", "weight_bytes"))


def slots(
    pack: str,
    count: int | Sequence[int],
    stages: Sequence[dict[str, Any]],
    *,
    compiled: bool = False,
    dtype: str = "float32",
    ranks: int = 1,
) -> dict[str, Any]:
    """A job: an engine over slots; its answers are those of the stages, in order, or all {"error": …} where it does not
    start. Each of several ``ranks`` is a process that vLLM makes.
    """
    described = {"pack": pack, "slots": count, "stages": stages, "compiled": compiled, "dtype": dtype, "ranks": ranks}
    return {"what": "slots", **described}


def stock(
    checkpoint: Path, batches: Sequence[tuple[Kept | None, Sequence[Sequence[int]]]], *, dtype: str = "float32"
) -> dict[str, Any]:
    """A job: unchanged vLLM, its routers kept from choosing anything else. Answers a ``Masked`` to each batch."""
    return {
        "what": "stock",
        "checkpoint": str(checkpoint),
        "batches": batches,
        "compiled": False,
        "dtype": dtype,
    }


class Masked(NamedTuple):
    """``changed``: share of router decisions that the mask changed."""

    answers: list[Answer]
    changed: float


def run(jobs: Mapping[str, dict[str, Any]]) -> dict[str, list[Any]]:
    """The answers of each job, by its name. Engines run one after another, those of one kind in one process, both kinds
    at a time: the import of vLLM takes most of the time. Stock ones know of no plug-in.
    """
    kinds = {"slots": QUIET, "stock": {**QUIET, "VLLM_PLUGINS": ""}}
    each = [({name: job for name, job in jobs.items() if job["what"] == what}, kinds[what]) for what in kinds]
    with ThreadPoolExecutor() as pool:
        answers = dict(ChainMap(*pool.map(lambda one: _process(*one) if one[0] else {}, each)))
    return {name: _read(job, answers[name]) for name, job in jobs.items()}


def _process(jobs: dict[str, dict[str, Any]], environment: dict[str, str]) -> dict[str, list[Any]]:
    with tempfile.TemporaryDirectory(prefix="premoe-vllm-") as name:
        given, answer = Path(name, "jobs.json"), Path(name, "answers.json")
        given.write_text(json.dumps(jobs))
        done = subprocess.run(
            [sys.executable, "-m", "support.vllm_engines", str(given), str(answer)],
            env={**os.environ, **environment, "PYTHONPATH": str(Path(__file__).parents[1])},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        found: dict[str, list[Any]] = json.loads(answer.read_text())
        return found


def _read(job: dict[str, Any], answers: list[Any]) -> list[Any]:
    if job["what"] == "stock":
        return [Masked([Answer(*each) for each in batch], changed) for batch, changed in answers]
    return [
        [Answer(*each) for each in answer] if stage["do"] == "generate" else answer
        for stage, answer in zip(job["stages"], answers, strict=True)
    ]


# The rest runs in the process of the engine.


def main() -> None:
    jobs, answers = json.loads(Path(sys.argv[1]).read_text()), {}
    # vLLM looks through the whole heap seven times an engine, half of an engine's time; once is enough.
    collect, gc.collect = gc.collect, lambda generation=2: 0
    for name, job in jobs.items():
        answers[name] = _slots(job) if job["what"] == "slots" else _stock(job)
        _tidy()
        collect()
    Path(sys.argv[2]).write_text(json.dumps(answers))


def _tidy() -> None:
    """Make room for another engine in this process."""
    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()


def _engine(job: dict[str, Any], **arguments: Any) -> Any:
    from vllm import LLM
    from vllm.model_executor.models import registry

    # Only where nobody has CUDA to keep untouched: for each new architecture it imports all of vLLM in another process.
    registry._run_in_subprocess = lambda look: look()
    return LLM(
        dtype=job["dtype"],
        enforce_eager=not job["compiled"],
        max_model_len=256,
        max_num_seqs=16,
        max_logprobs=TOP_LOGPROBS,
        kv_cache_memory_bytes=KV_BYTES,
        skip_tokenizer_init=True,
        **arguments,
    )


def _params(row: int | None) -> Any:
    from vllm import SamplingParams

    from premoe_runtime.engines.vllm.plan import ROW

    return SamplingParams(
        temperature=0,
        max_tokens=NEW_TOKENS,
        ignore_eos=True,
        detokenize=False,
        logprobs=TOP_LOGPROBS,
        extra_args=None if row is None else {ROW: row},
    )


def _answer(output: Any) -> tuple[list[int], list[dict[str, float]]]:
    (one,) = output.outputs
    return list(one.token_ids), [{str(token): value.logprob for token, value in at.items()} for at in one.logprobs]


def _slots(job: dict[str, Any]) -> list[Any]:
    from premoe_runtime.engines.hf.tokenizer import skeleton_folder
    from premoe_runtime.engines.vllm.arguments import arguments
    from premoe_runtime.engines.vllm.plan import SlotPlan
    from premoe_runtime.formats.errors import InvalidInput
    from premoe_runtime.packs.reader import open_pack

    source = open_pack(job["pack"])
    plan = SlotPlan.of(source.manifest(), job["slots"], pack=job["pack"], rows=8)
    with skeleton_folder(source) as folder:
        try:
            given = {"tensor_parallel_size": job["ranks"], "distributed_executor_backend": "mp"}
            llm = _engine(job, **arguments(folder, plan, given if job["ranks"] > 1 else None))
        except InvalidInput as error:
            return [{"error": str(error)} for _ in job["stages"]]
        return [_stage(llm, stage) for stage in job["stages"]]


def _stage(llm: Any, stage: dict[str, Any]) -> Any:
    match stage["do"]:
        case "bring":
            rows = {int(row): kept for row, kept in stage["rows"].items()}
            try:
                return llm.collective_rpc("premoe_bring", args=(rows, stage["pinned"]))[0]
            except Exception as error:
                return {"error": str(error)}
        case "generate":
            return _generate(llm, stage)
        case what:
            return llm.collective_rpc(f"premoe_{what}")[0]


def _generate(llm: Any, stage: dict[str, Any]) -> list[Any]:
    engine, found, steps = llm.llm_engine, {}, 0
    for number, (tokens, row) in enumerate(stage["requests"]):
        engine.add_request(str(number), {"prompt_token_ids": tokens}, _params(row))
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                found[int(output.request_id)] = _answer(output)
        steps += 1
        if stage["swap"] and steps == stage["after"]:
            assert len(found) < len(stage["requests"]), "nothing was left to decode beside the swap"
            swapped = _stage(llm, stage["swap"])
            assert isinstance(swapped, list), swapped
    return [found[number] for number in range(len(stage["requests"]))]


def _stock(job: dict[str, Any]) -> list[Any]:
    llm, masks = _engine(job, model=job["checkpoint"], enable_prefix_caching=False), Masks()
    llm.apply_model(masks.put_in)
    found = []
    for kept, prompts in job["batches"]:
        masks.kept, masks.changed = kept, []
        asked = [{"prompt_token_ids": tokens} for tokens in prompts]
        answers = [_answer(output) for output in llm.generate(asked, _params(None), use_tqdm=False)]
        found.append((answers, sum(masks.changed) / max(len(masks.changed), 1)))
    return found


class Masks:
    """Puts -inf into what vLLM's own routers choose by, while they run: their correction bias, the logits of a function
    of the model's own, the scores of groups, or what their ``torch.topk`` sees.
    """

    def __init__(self) -> None:
        self.kept: Kept | None = None
        self.changed: list[float] = []

    def put_in(self, model: Any) -> None:
        routers = [module.router for module in model.modules() if hasattr(module, "routed_experts")]
        assert routers
        for layer, router in enumerate(routers):
            if router.e_score_correction_bias is not None and not router.use_grouped_topk:
                # vLLM's router for CPUs has a correction bias in its function of groups only, and leaves it out (ERNIE)
                # or stops (MiniMax-M2) where there are none. One group is none.
                router.use_grouped_topk, router.num_expert_group, router.topk_group = True, 1, 1
            router._compute_routing = self._masked(layer, router, router._compute_routing)

    def _masked(self, layer: int, router: Any, stock: Any) -> Any:
        import torch

        def compute(*args: Any, **kwargs: Any) -> Any:
            if self.kept is None:
                return stock(*args, **kwargs)
            free = stock(*args, **kwargs)[1].sort(-1).values
            out = torch.ones(router.global_num_experts, dtype=torch.bool, device=free.device)
            out[list(self.kept[layer])] = False
            if free.is_cuda:
                # Kernels for GPUs choose by no ``torch.topk``; where weights are made to add up to one it is the same.
                args = (args[0], args[1].masked_fill(out, -float("inf")), *args[2:])
            with _left_out(router, out):
                weights, ids = stock(*args, **kwargs)
            self.changed.append(float((ids.sort(-1).values != free).any(-1).float().mean()))
            return weights, ids

        return compute


def _left_out(router: Any, out: Any) -> Any:
    """While it is entered, ``router`` chooses nothing of ``out``: bool[E]."""
    import torch

    inf, topk, softmax = float("inf"), torch.topk, torch.softmax
    if (bias := router.e_score_correction_bias) is not None:
        return mock.patch.object(router, "e_score_correction_bias", bias.masked_fill(out, -inf))
    if (own := router.custom_routing_function) is not None:

        def routed(*, gating_output: Any, **others: Any) -> Any:
            return own(gating_output=gating_output.masked_fill(out, -inf), **others)

        return mock.patch.object(router, "custom_routing_function", routed)
    if router.use_grouped_topk and router.num_expert_group > 1:
        return mock.patch.object(
            torch, "softmax", lambda *args, **kwargs: softmax(*args, **kwargs).masked_fill(out, -inf)
        )

    def chosen(values: Any, *args: Any, **kwargs: Any) -> Any:
        left = values.masked_fill(out, -inf) if values.shape[-1] == len(out) else values
        return topk(left, *args, **kwargs)

    return mock.patch.object(torch, "topk", chosen)


if __name__ == "__main__":
    main()
