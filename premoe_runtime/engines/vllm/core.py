"""vLLM's own core in this process: requests in, steps, choices out. The one file that reaches into its scheduler."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pydantic import ValidationError
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.core import EngineCore
from vllm.v1.executor import Executor
from vllm.v1.executor.uniproc_executor import ExecutorWithExternalLauncher
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.sample.sampler import Sampler

from premoe_runtime.engines.base import Logprobs
from premoe_runtime.engines.child.crew import Alone
from premoe_runtime.engines.choosing import Choice, choose
from premoe_runtime.engines.vllm.arguments import RANKS
from premoe_runtime.engines.vllm.kv_memory import SizedCore, blocks_of
from premoe_runtime.engines.vllm.plan import ACTIVE, ROW
from premoe_runtime.engines.vllm.rows import Rule
from premoe_runtime.engines.vllm.sequences import CoreSequence
from premoe_runtime.engines.vllm.spoilt_blocks import SpoiltBlocks
from premoe_runtime.engines.vllm.turns import Turns
from premoe_runtime.engines.vllm.worker import SLOTS, SlotModel
from premoe_runtime.formats.errors import InvalidInput, PremoeError

Agree = Callable[[Callable[[], list[Choice]]], list[Choice]]
"""Makes one rank's choice that of all: ``child.crew.Alone.agree``."""


class VllmCore:
    """Implements ``sequences.Core``. ``contexts``: how many whole ones the KV memory is for, where it lies in main
    memory; on a device vLLM takes what is left there. ``windows``: how far every block looks back. ``crew``: the ranks
    of which this is one. Raises InvalidInput for arguments that vLLM does not take, and a model that it runs with other
    windows or other state.
    """

    def __init__(
        self,
        arguments: Mapping[str, Any],
        *,
        context: int,
        contexts: int,
        windows: Sequence[int | None],
        device: str,
        crew: Alone,
    ) -> None:
        config = _config(arguments)
        _check_device(config, device, crew.ranks)
        if config.model_config.is_hybrid:
            _check_state(config, crew.ranks)
            # State is kept as it is at the end of a sequence, not as it was at that of a prefix.
            config = _config({**arguments, "enable_prefix_caching": False})
        self._core, self._crew = _started(config, crew, context, contexts), crew
        _check_windows(config, windows, context)
        self._scheduler: Any = self._core.scheduler
        self._context = context
        self._specs = [group.kv_cache_spec for group in self._scheduler.kv_cache_config.kv_cache_groups]
        self._runner: Any = self._core.model_executor.driver_worker.model_runner
        self.slots: SlotModel = getattr(self._runner, SLOTS)
        self._blocks = SpoiltBlocks(self._scheduler.kv_cache_manager, self._runner)
        self._sampler: PortSampler | None = None
        self.turns = Turns()

    def choose_by(self, named: Callable[[str], CoreSequence], count_prompt: Callable[[int], None]) -> None:
        """Have tokens chosen by the port's rules, for the sequences that the names stand for."""
        self._sampler = self._runner.sampler = PortSampler(
            self._runner, self.slots, named, count_prompt, self._crew.agree
        )

    @property
    def blocks(self) -> int:
        # One of them stands for none.
        return int(self._scheduler.cache_config.num_gpu_blocks) - 1

    @property
    def used(self) -> float:
        return float(self._scheduler.kv_cache_manager.usage)

    def blocks_of(self, tokens: int) -> int:
        return blocks_of(self._specs, tokens)

    def add(self, name: str, sequence: CoreSequence, rule: Rule, salt: str) -> None:
        params = SamplingParams(
            # Where an answer ends, and what is chosen, is decided here.
            temperature=0.0,
            max_tokens=self._context - len(sequence.tokens),
            ignore_eos=True,
            detokenize=False,
            prompt_logprobs=sequence.request.sampling.prompt_logprobs if sequence.wants_every_logit else None,
            extra_args={ROW: rule.row, ACTIVE: rule.active},
        )
        request = EngineCoreRequest(
            request_id=name,
            prompt_token_ids=list(sequence.tokens),
            mm_features=None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=time.time(),
            lora_request=None,
            cache_salt=salt,
            data_parallel_rank=None,
        )
        self._core.add_request(*self._core.preprocess_add_request(request))

    def hold(self, name: str) -> bool:
        request: Request = self._scheduler.requests[name]
        if request.status is not RequestStatus.RUNNING:
            return False
        self._scheduler.running.remove(request)
        return True

    def resume(self, name: str) -> None:
        self._scheduler.running.append(self._scheduler.requests[name])

    def drop(self, name: str, *, spoilt: bool) -> None:
        if spoilt:
            self._blocks.spoil(name)
        self._core.abort_requests([name])

    def step(self) -> tuple[Mapping[str, Choice], Mapping[str, Sequence[Logprobs]]]:
        assert self._sampler is not None, "given before the first step"
        self._sampler.choices = {}
        self._blocks.wipe()
        with self.turns:
            outputs, executed = self._core.step_fn()
            self._core.post_step(executed)
        told = [output for batch in (outputs or {}).values() for output in batch.outputs]
        prompts = {
            output.request_id: prompt_logprobs(output.new_prompt_logprobs_tensors)
            for output in told
            if output.new_prompt_logprobs_tensors is not None
        }
        return self._sampler.choices, prompts

    def close(self) -> None:
        self._core.shutdown()


class PortSampler(Sampler):  # type: ignore[misc]
    """In the place of a runner's sampler: every sequence's own rules and generator, as under the engine ``hf``.

    ``choices``: of the step at hand, by name. An error is a choice too; vLLM is given some token then.
    """

    def __init__(
        self,
        runner: Any,
        slots: SlotModel,
        named: Callable[[str], CoreSequence],
        count_prompt: Callable[[int], None],
        agree: Agree,
    ) -> None:
        super().__init__()
        self._runner, self._slots, self._named, self._count_prompt = runner, slots, named, count_prompt
        self._agree = agree
        self.choices: dict[str, Choice] = {}

    def forward(self, logits: torch.Tensor, sampling_metadata: Any, *args: Any, **kwargs: Any) -> SamplerOutput:
        """``logits``: float[B, V], a row a request; those whose prompt goes on in the next step get any token."""
        batch = self._runner.input_batch
        sequences = [self._named(name) for name in batch.req_ids]
        self._count(sequences, batch.num_computed_tokens_cpu)
        ready = [row for row in range(len(sequences)) if not self._runner.discard_request_mask.np[row]]
        tokens = torch.zeros(len(sequences), 1, dtype=torch.int32)
        if ready:
            rows = logits if len(ready) == len(sequences) else logits[ready]
            found = self._agree(lambda: choose([sequences[row] for row in ready], rows.float()))
            self.choices = {sequences[row].name: choice for row, choice in zip(ready, found, strict=True)}
            for row, (token, _) in zip(ready, found, strict=True):
                tokens[row] = 0 if isinstance(token, Exception) else token
        return SamplerOutput(tokens.to(logits.device), None)

    def gather_logprobs(self, logprobs: torch.Tensor, num_logprobs: int, token_ids: torch.Tensor) -> LogprobsTensors:
        """Of prompts. vLLM's own counts ranks too, by a kernel whose compilation would hold everybody up."""
        token_ids = token_ids[:, None]
        best, ids = logprobs.topk(num_logprobs, dim=-1)
        values = torch.cat([logprobs.gather(-1, token_ids), best], dim=-1)
        ranks = torch.zeros(len(values), dtype=torch.int32, device=values.device)
        return LogprobsTensors(torch.cat([token_ids, ids], dim=-1).to(torch.int32), values, ranks)

    def _count(self, sequences: Sequence[CoreSequence], computed: Any) -> None:
        rows, layers = self._slots.rows, self._slots.slots.num_layers
        sums = self._slots.mass.sums(rows)
        for sequence, before, count, mass in zip(
            sequences, computed[: len(sequences)].tolist(), rows.counts.values(), sums, strict=True
        ):
            sequence.start()
            sequence.computed = before
            self._count_prompt(sequence.computed_more(count, mass / layers))


def prompt_logprobs(tensors: LogprobsTensors) -> list[Logprobs]:
    """Of vLLM's, whose first column is the token that stands there."""
    rows = zip(tensors.logprob_token_ids.tolist(), tensors.logprobs.tolist(), strict=True)
    return [Logprobs(ids[0], values[0], tuple(zip(ids[1:], values[1:], strict=True))) for ids, values in rows]


def _check_state(config: VllmConfig, ranks: int) -> None:
    """Raise InvalidInput (ENGINE_UNSUPPORTED) for layers whose state vLLM gets wrong, or lies where nobody tried it."""
    if ranks > 1:
        raise InvalidInput(
            "the engine vllm does not run this model on several devices: some of its layers keep state; ask for one",
            reason="ENGINE_UNSUPPORTED",
        )
    kinds = getattr(config.model_config.hf_text_config, "layer_types", None) or ()
    if "conv" in kinds and config.device_config.device_type == "cpu":
        raise InvalidInput(
            "the engine vllm does not run this model here: vLLM's short convolutions for CPUs give a sequence other "
            "numbers beside others than alone; use the engine hf",
            reason="ENGINE_UNSUPPORTED",
        )


def _check_windows(config: VllmConfig, windows: Sequence[int | None], context: int) -> None:
    """Raise InvalidInput (ENGINE_UNSUPPORTED) where vLLM's model looks back otherwise than the family's own."""

    def seen(window: int | None) -> int:
        return context if window is None else min(window, context)

    for name, layer in config.compilation_config.static_forward_context.items():
        if not isinstance(layer, Attention):
            continue
        block = extract_layer_index(name)
        if seen(layer.sliding_window) != seen(windows[block]):
            raise InvalidInput(
                f"the engine vllm does not run this model: in block {block} it looks back "
                f"{seen(layer.sliding_window)} tokens, the model itself {seen(windows[block])}; use the engine hf",
                reason="ENGINE_UNSUPPORTED",
            )


def _config(arguments: Mapping[str, Any]) -> VllmConfig:
    try:
        return EngineArgs(**arguments).create_engine_config()
    except InvalidInput:
        raise
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"vLLM refuses its arguments: {_said(error)}", reason="ENGINE_ARGUMENT") from error


def _check_device(config: VllmConfig, device: str, ranks: int) -> None:
    asked, found = torch.device(device), config.device_config.device_type
    if asked.type != found or asked.index not in (None, 0):
        raise InvalidInput(
            f"the device {device} is asked for, but this vLLM runs on the first {found} device; install the build for "
            f"{asked.type} devices, or choose among them by CUDA_VISIBLE_DEVICES",
            reason="DEVICE_INVALID",
        )
    if found != "cpu" and (there := torch.accelerator.device_count()) < ranks:
        raise InvalidInput(
            f"vLLM's argument {RANKS}={ranks} asks for more devices than there are here, {there}; ask for fewer",
            reason="DEVICE_INVALID",
        )


def _started(config: VllmConfig, crew: Alone, context: int, contexts: int) -> EngineCore:
    """Raises InvalidInput (ENGINE_UNSUPPORTED) for a model that vLLM has no kernel for here."""
    if config.device_config.device_type == "cpu" and torch.cpu._is_amx_tile_supported():
        # Its kernels for bfloat16 take for granted that somebody asked the kernel for AMX before: a step does not.
        torch.cpu._init_amx()
    try:
        return SizedCore(config, _executor(config, crew), context, contexts)
    except PremoeError:
        raise
    except (ValueError, NotImplementedError) as error:
        raise InvalidInput(
            f"the engine vllm does not run this model here: {_said(error)}; use the engine hf",
            reason="ENGINE_UNSUPPORTED",
        ) from error


def _executor(config: VllmConfig, crew: Alone) -> type[Executor]:
    """VLLM's own for one process a rank, whose environment says neither which rank it is nor where others are."""
    if crew.ranks == 1:
        stock: type[Executor] = Executor.get_class(config)
        return stock

    class RankExecutor(ExecutorWithExternalLauncher):  # type: ignore[misc]
        def _distributed_args(self) -> tuple[str, int, int]:
            return crew.meeting, crew.rank, crew.rank

    return RankExecutor


def _said(error: Exception) -> str:
    """In one line."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return ": ".join([*map(str, first["loc"]), first["msg"]])
    return " ".join(str(error).split()) or type(error).__name__
