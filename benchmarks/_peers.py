"""Engines to compare, each in a process of its own: vLLM over slots and as it comes, ours, transformers, llama.cpp."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import click
import numpy as np
import torch
from throughput import BATCHES, EXPERTS, LAYERS, VOCABULARY, Plain, Served

from premoe_runtime.packs.reader import open_pack

EIGHTH, CONTEXT, STEP_TOKENS, KV_BYTES = EXPERTS // 8, 1024, 1024, 512 << 20
END_SECONDS = 30.0
LLAMA_HOME = Path(".venv-llama")
"""Made by ``tools/install_llama.sh``."""


class Speed(NamedTuple):
    """Seconds until all of a batch have their first token, and seconds a token of the batch after that; ``swaps``:
    patterns that were swapped in meanwhile.
    """

    prefill: float
    decode: float
    swaps: int = 0


class Runs(Protocol):
    def __call__(self, batch: int, prompt_tokens: int, answer_tokens: int) -> Speed: ...


class Model(NamedTuple):
    """Where it lies, as ``throughput`` made it."""

    checkpoint: Path
    exported: Path
    pack: str
    dtype: str


# What runs in the peers' processes: vLLM is imported there only.

_OPEN: list[object] = []


def by_vllm(model: Model, *, folder: str) -> Runs:
    """Stock vLLM, without the plug-in."""
    os.environ["VLLM_PLUGINS"] = ""
    return _timed(_llm(model.dtype, model=str(getattr(model, folder)), enable_prefix_caching=False), row=None)


def by_slots(model: Model, *, slots: int) -> Runs:
    """VLLM with the plug-in, under a pattern that fills the slots."""
    from premoe_runtime.engines.hf.tokenizer import skeleton_folder
    from premoe_runtime.engines.vllm.arguments import arguments
    from premoe_runtime.engines.vllm.plan import SlotPlan

    source = open_pack(model.pack)
    plan = SlotPlan.of(source.manifest(), slots, pack=model.pack, rows=4)
    with skeleton_folder(source) as folder:
        llm = _llm(model.dtype, **arguments(folder, plan))
    llm.collective_rpc("premoe_bring", args=({1: [list(range(slots))] * LAYERS},))
    return _timed(llm, row=1)


def by_worker(model: Model, *, engine: str) -> Runs:
    """The engine behind the port, with slots for all experts, and the serving front before it; vLLM in a process of its
    own, as workers have it.
    """
    if engine == "hf":
        return partial(_run, Served.by_hf(model.pack, EXPERTS, CONTEXT))
    from _worker import worker

    made = worker(
        model.pack, slots=EXPERTS, sequences=max(BATCHES), threads=torch.get_num_threads(), host_blobs=EXPERTS * LAYERS
    )
    # Until this process ends, and with it the other.
    _OPEN.append(made)
    return partial(_run, made.__enter__())


def by_transformers(model: Model) -> Runs:
    return partial(_run, Plain(model.checkpoint, model.dtype))


def _run(peer: Served | Plain, batch: int, prompt_tokens: int, answer_tokens: int) -> Speed:
    found = peer.run(batch, prompt_tokens, answer_tokens)
    return Speed(found.prefill, found.decode if answer_tokens > 1 else 0.0)


def _llm(dtype: str, **arguments: Any) -> Any:
    from vllm import LLM

    return LLM(
        dtype=dtype,
        enforce_eager=True,
        max_model_len=CONTEXT,
        max_num_seqs=max(BATCHES),
        max_num_batched_tokens=STEP_TOKENS,
        kv_cache_memory_bytes=KV_BYTES,
        skip_tokenizer_init=True,
        **arguments,
    )


def _timed(llm: Any, row: int | None) -> Runs:
    from vllm import SamplingParams

    from premoe_runtime.engines.vllm.plan import ROW

    engine, random, serial = llm.llm_engine, np.random.default_rng(0), iter(range(1 << 30))

    def run(batch: int, prompt_tokens: int, answer_tokens: int) -> Speed:
        params = SamplingParams(
            temperature=0.0,
            max_tokens=answer_tokens,
            ignore_eos=True,
            detokenize=False,
            extra_args=None if row is None else {ROW: row},
        )
        prompts = random.integers(0, VOCABULARY, (batch, prompt_tokens)).tolist()
        made = {f"{next(serial)}": 0 for _ in range(batch)}
        began, known = 0.0, 0
        sent = time.perf_counter()
        for name, prompt in zip(made, prompts, strict=True):
            engine.add_request(name, {"prompt_token_ids": prompt}, params)
        while engine.has_unfinished_requests():
            for output in engine.step():
                made[output.request_id] = len(output.outputs[0].token_ids)
            if not began and all(made.values()):
                began, known = time.perf_counter(), sum(made.values())
        decoded = sum(made.values()) - known
        return Speed(began - sent, (time.perf_counter() - began) / decoded if decoded else 0.0)

    return run


def _serve(pipe: Connection, make: Callable[[Any], Callable[..., Speed]], model: Any, threads: int) -> None:
    torch.set_num_threads(threads)
    run = make(model)
    pipe.send(None)
    with suppress(EOFError):
        while (asked := pipe.recv()) is not None:
            pipe.send(run(*asked))


# The rest runs in the process that measures.

LLAMA_CPP = "llama_cpp"
PEERS: Mapping[str, Callable[[Model], Runs]] = {
    "vllm": partial(by_vllm, folder="checkpoint"),
    "slots_all": partial(by_slots, slots=EXPERTS),
    "slots_eighth": partial(by_slots, slots=EIGHTH),
    "exported": partial(by_vllm, folder="exported"),
    "worker_all": partial(by_worker, engine="vllm"),
    "hf": partial(by_worker, engine="hf"),
    "transformers": by_transformers,
}


class AnyPeer(Protocol):
    """One process. Raises ClickException where it ended."""

    def run(self, batch: int, prompt_tokens: int, answer_tokens: int) -> Speed: ...

    def close(self) -> None: ...


class Peer:
    """One that runs what ``make`` makes of ``model``."""

    def __init__(self, name: str, make: Callable[[Any], Callable[..., Speed]], model: Any, threads: int) -> None:
        context = get_context("spawn")
        self._name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, model, threads))
        self._process.start()
        theirs.close()
        self._answer()

    def run(self, batch: int, prompt_tokens: int, answer_tokens: int, *more: Any) -> Speed:
        self._pipe.send((batch, prompt_tokens, answer_tokens, *more))
        answer = self._answer()
        assert answer is not None
        return answer

    def close(self) -> None:
        with suppress(OSError):
            self._pipe.send(None)
        self._process.join(END_SECONDS)
        self._process.kill()

    def _answer(self) -> Speed | None:
        try:
            answer: Speed | None = self._pipe.recv()
        except EOFError:
            raise click.ClickException(f"{self._name} ended; its own words are above") from None
        return answer


class LlamaPeer:
    """llama.cpp with the same weights, in an environment of its own: ``_llama.py``."""

    def __init__(self, model: Model, threads: int) -> None:
        command = [
            str(LLAMA_HOME / "bin" / "python"),
            str(Path(__file__).with_name("_llama.py")),
            str(model.checkpoint),
            str(threads),
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def run(self, batch: int, prompt_tokens: int, answer_tokens: int) -> Speed:
        assert self._process.stdin is not None, "piped"
        self._process.stdin.write(json.dumps([batch, prompt_tokens, answer_tokens]) + "\n")
        self._process.stdin.flush()
        return Speed(*self._answer())

    def close(self) -> None:
        self._process.kill()
        self._process.wait(END_SECONDS)

    def _answer(self) -> Any:
        assert self._process.stdout is not None, "piped"
        if not (line := self._process.stdout.readline()):
            raise click.ClickException(f"{LLAMA_CPP} ended; its own words are above")
        return json.loads(line)


def start(name: str, model: Model, threads: int) -> AnyPeer:
    return LlamaPeer(model, threads) if name == LLAMA_CPP else Peer(name, PEERS[name], model, threads)


def why_not(name: str, dtype: str) -> str | None:
    """Why a peer cannot take part."""
    if name == LLAMA_CPP and not (LLAMA_HOME / ".installed").exists():
        return f"there is no {LLAMA_HOME}; tools/install_llama.sh {LLAMA_HOME} makes it"
    if name == LLAMA_CPP and dtype != "float32":
        return "its weights are converted in float32 only"
    return None
