"""Engines of vLLM, each in a process of its own: over slots with our plug-in, or stock and masked from outside.

    python -m support.vllm_engines JOB.json ANSWER.json

Tests call ``slots`` and ``stock``, which start that process; what runs in it is below ``main``. vLLM is imported there
only, so that its threads, warnings and global state stay there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

NEW_TOKENS, TOP_LOGPROBS = 16, 20
SECONDS = 600
"""Bound on a process that only a bug would reach."""
QUIET = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
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
    pack: str, count: int | Sequence[int], stages: Sequence[dict[str, Any]], *, compiled: bool = False
) -> list[Any]:
    """What an engine over slots answers to each stage."""
    answers = _run({"what": "slots", "pack": pack, "slots": count, "stages": stages, "compiled": compiled})
    return [_read(stage, answer) for stage, answer in zip(stages, answers, strict=True)]


class Masked(NamedTuple):
    """``changed``: share of router decisions that the mask changed."""

    answers: list[Answer]
    changed: float


def stock(
    checkpoint: Path, batches: Sequence[tuple[Kept | None, Sequence[Sequence[int]]]], *, compiled: bool = False
) -> list[Masked]:
    """What unchanged vLLM answers to each batch of prompts, its routers kept from choosing anything else."""
    found = _run({"what": "stock", "checkpoint": str(checkpoint), "batches": batches, "compiled": compiled})
    return [Masked([Answer(*each) for each in answers], changed) for answers, changed in found]


def _read(stage: dict[str, Any], answer: Any) -> Any:
    return [Answer(*each) for each in answer] if stage["do"] == "generate" else answer


def _run(job: dict[str, Any]) -> Any:
    with tempfile.TemporaryDirectory(prefix="premoe-vllm-") as name:
        given, answer = Path(name, "job.json"), Path(name, "answer.json")
        given.write_text(json.dumps(job))
        command = [sys.executable, "-m", "support.vllm_engines", str(given), str(answer)]
        environment = {**os.environ, **QUIET, "PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(answer.read_text())


# The rest runs in the process of the engine.


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    answer = _slots(job) if job["what"] == "slots" else _stock(job)
    Path(sys.argv[2]).write_text(json.dumps(answer))


def _engine(job: dict[str, Any], **arguments: Any) -> Any:
    from vllm import LLM

    return LLM(
        dtype="float32",
        enforce_eager=not job["compiled"],
        max_model_len=256,
        max_num_seqs=16,
        max_logprobs=TOP_LOGPROBS,
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
    from premoe_runtime.packs.reader import open_pack

    source = open_pack(job["pack"])
    plan = SlotPlan.of(source.manifest(), job["slots"], pack=job["pack"], rows=8)
    with skeleton_folder(source) as folder:
        llm = _engine(job, **arguments(folder, plan))
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
    """Puts -inf into what the ``torch.topk`` of vLLM's own routers chooses by, while they run."""

    def __init__(self) -> None:
        self.kept: Kept | None = None
        self.changed: list[float] = []

    def put_in(self, model: Any) -> None:
        routers = [module.router for module in model.modules() if hasattr(module, "routed_experts")]
        assert routers
        for layer, router in enumerate(routers):
            router._compute_routing = self._masked(layer, router._compute_routing)

    def _masked(self, layer: int, stock: Any) -> Any:
        import torch

        topk = torch.topk

        def compute(*args: Any, **kwargs: Any) -> Any:
            if self.kept is None:
                return stock(*args, **kwargs)
            free = stock(*args, **kwargs)[1].sort(-1).values

            def chosen(values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
                out = torch.ones(values.shape[-1], dtype=torch.bool)
                out[list((self.kept or [])[layer])] = False
                return topk(values.masked_fill(out, -torch.inf), *args, **kwargs)

            with mock.patch.object(torch, "topk", chosen):
                weights, ids = stock(*args, **kwargs)
            self.changed.append(float((ids.sort(-1).values != free).any(-1).float().mean()))
            return weights, ids

        return compute


if __name__ == "__main__":
    main()
