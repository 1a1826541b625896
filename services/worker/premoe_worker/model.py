"""Everything of the runtime that a worker holds: the engine, the serving front before it, tokenizer and prober."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from transformers import PreTrainedTokenizerBase

from premoe_runtime.engines.base import Engine
from premoe_runtime.engines.hf.device import device_kind
from premoe_runtime.engines.hf.token_bytes import TokenBytes
from premoe_runtime.engines.vllm.arguments import ranks_in
from premoe_runtime.formats.arrays import F32
from premoe_runtime.formats.errors import InvalidInput
from premoe_runtime.formats.manifest import Manifest
from premoe_runtime.formats.signature import EARLIER_TURNS, Signatures
from premoe_runtime.offline.prompt_room import PromptRoom
from premoe_runtime.offline.prompts import Span, encode_prompt
from premoe_runtime.probing.prober import Prober
from premoe_runtime.residency.host_arena import HostArena
from premoe_runtime.residency.host_tier import available_memory, default_host_bytes
from premoe_runtime.residency.slot_shape import SlotShape
from premoe_runtime.residency.source import ExpertSource
from premoe_runtime.serving.front import Front
from premoe_runtime.serving.requests import KeptPattern
from premoe_worker.domain import Ask, Tool, Turn
from premoe_worker.engine import Loaded, Opener, choose_engine, load_here, load_in_child, say_hf
from premoe_worker.limits import Limits
from premoe_worker.settings import WorkerSettings
from premoe_worker.template import TemplateArguments
from premoe_worker.tools.formats import ToolUse
from premoe_worker.tools.rendering import fields_of, listed

_KNOWN_TURNS = 1024
_KNOWN_TURN_CHARACTERS = 4096


@dataclass(frozen=True, slots=True)
class Encoded:
    """A prompt as token ids; ``span`` holds the tokens that a signature is made of.

    ``user_turns``: texts of the latest user turns, the last one included; empty where nothing comes before that.
    """

    token_ids: tuple[int, ...]
    span: Span
    user_turns: tuple[str, ...] = ()


class ServedModel:
    """One model, ready to generate. Methods are safe from any thread; those marked so may take a while."""

    def __init__(
        self, manifest: Manifest, tokenizer: PreTrainedTokenizerBase, engine: Engine, front: Front, prober: Prober
    ) -> None:
        self.manifest = manifest
        self.engine = engine
        self.front = front
        self._tokenizer = tokenizer
        self.tokens = TokenBytes(tokenizer)
        self._prober = prober
        self.tool_use = ToolUse.of(tokenizer)
        self._template_arguments = TemplateArguments.of(tokenizer)
        self._room = PromptRoom.of(tokenizer, engine.limits.context)
        # A conversation sends its turns again and again.
        self._known_turn = lru_cache(_KNOWN_TURNS)(self._probe_turn)

    def encode(self, ask: Ask, *, plain: bool = False) -> Encoded:
        """Token ids of its prompt; of ``plain`` text, without the tokenizer's special ones. Long ones take a while.

        Raises InvalidInput: no user turn, refused by the template, tools or arguments that it does not know, longer
        than the context.
        """
        prompt, tools = ask.prompt, ask.tools
        if isinstance(prompt, str):
            self._room.check(prompt)
            token_ids = tuple(
                int(token) for token in self._tokenizer(prompt, add_special_tokens=not plain)["input_ids"]
            )
            return Encoded(token_ids, Span(0, len(token_ids)))
        turns = [turn for turn in prompt if isinstance(turn, Turn)]
        if not turns:
            token_ids = tuple(item for item in prompt if isinstance(item, int))
            return Encoded(token_ids, Span(0, len(token_ids)))
        if turns[-1].role not in ("user", "tool"):
            raise InvalidInput("the last message must be the user's or a tool's", reason="LAST_TURN")
        self.tool_use.check(turns, tools)
        options = self._template_arguments.read(ask.template_arguments)
        if tools:
            options["tools"] = [*map(listed, tools)]
        rendered = encode_prompt(self._tokenizer, turns, self._room, fields=fields_of, options=options)
        return Encoded(rendered.token_ids, rendered.span, _user_turns(turns, tools))

    def decode(self, token_ids: Sequence[int], *, skip_special: bool) -> str:
        """Text of tokens. Raises InvalidInput for ids outside the vocabulary."""
        vocabulary = self.engine.limits.vocabulary
        if not all(0 <= token < vocabulary for token in token_ids):
            raise InvalidInput(f"tokens holds ids outside 0 … {vocabulary - 1}", reason="TOKENS_INVALID")
        text: str = self._tokenizer.decode(
            list(token_ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
        )
        return text

    def signatures(self, encoded: Encoded) -> Signatures:
        """Those of an encoded prompt. Takes a while; needs no routed expert."""
        whole = self._prober.signature(encoded.token_ids, range(encoded.span.start, encoded.span.stop))
        if not encoded.user_turns:
            return Signatures(whole)
        *earlier, last = map(self._alone, encoded.user_turns)
        return Signatures(whole, last, tuple(each for each in earlier if each is not None))

    def _alone(self, text: str) -> F32 | None:
        """Signature of a user turn as if it opened a conversation; None where the template takes no such one."""
        return self._known_turn(text) if len(text) <= _KNOWN_TURN_CHARACTERS else self._probe_turn(text)

    def _probe_turn(self, text: str) -> F32 | None:
        try:
            prompt = encode_prompt(self._tokenizer, [Turn("user", text)], self._room)
        except InvalidInput:
            return None
        return self._prober.signature(prompt.token_ids, range(prompt.span.start, prompt.span.stop))

    def check_integrity(self) -> None:
        """Takes a while: reads every resident blob between two steps. Raises CorruptData."""
        self.front.check_integrity()

    def any_pattern(self, kept: int) -> KeptPattern:
        """The first ``kept`` experts of every layer: something to run where there is no pattern yet."""
        mask = self.manifest.exists
        mask[:, kept:] = False
        return KeptPattern("first experts", mask)

    def close(self) -> None:
        """Cancel everything and stop the threads."""
        self.front.close()


def _user_turns(turns: Sequence[Turn], tools: Sequence[Tool]) -> tuple[str, ...]:
    if len(turns) == 1 and not tools:
        return ()
    said = [turn.content for turn in turns if turn.role == "user" and turn.content.strip()]
    return tuple(said[-1 - EARLIER_TURNS :])


def load_model(source: ExpertSource, opener: Opener, limits: Limits, settings: WorkerSettings) -> ServedModel:
    """Read the skeleton and start the engine; ``opener`` opens the same source in another process.

    Takes a while. Raises what the source and the runtime raise, and Unavailable for an engine process that dies.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    shape, arena, (engine, model, tokenizer) = _load(source, opener, limits, settings)
    front = Front(engine, shape, arena, source, max_waiting=settings.queue_limit, copy_rate=settings.copy_rate_bytes)
    return ServedModel(shape.manifest, tokenizer, engine, front, Prober(model, shape.manifest))


def _load(
    source: ExpertSource, opener: Opener, limits: Limits, settings: WorkerSettings
) -> tuple[SlotShape, HostArena, Loaded]:
    """Slots and host tier as the engine wants them, and the engine."""
    manifest = source.manifest()
    if choose_engine(settings, manifest) == "vllm":
        shape = SlotShape.as_stored(manifest, slots=limits.slots, ranks=ranks_in(settings.vllm_arguments))
        arena = HostArena(shape.blob_bytes, _host_bytes(shape, settings))
        try:
            return shape, arena, load_in_child(source, opener, shape, arena, settings)
        except InvalidInput as error:
            if settings.engine == "vllm" or error.reason not in ("ENGINE_UNSUPPORTED", "VLLM_UNSUPPORTED"):
                raise
            say_hf(error)
    settings = settings.model_copy(update={"engine": "hf"})
    shape = SlotShape.of(manifest, slots=limits.slots)
    arena = HostArena(shape.blob_bytes, _host_bytes(shape, settings))
    if settings.engine_place == "process":
        return shape, arena, load_in_child(source, opener, shape, arena, settings)
    return shape, arena, load_here(source, shape.slots, arena, settings)


def _host_bytes(shape: SlotShape, settings: WorkerSettings) -> int:
    """Of the host tier: as set, else by what is left of main memory."""
    if settings.host_memory_bytes is not None:
        return settings.host_memory_bytes
    left = available_memory()
    if device_kind(settings.device) == "cpu":
        # Not taken yet: the skeleton is still to be read, and slots take their pages when they are written.
        left -= shape.device_bytes + shape.skeleton_bytes
    return default_host_bytes(shape.blob_bytes, sum(shape.slots), left)
