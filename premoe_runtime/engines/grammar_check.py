"""Whether a grammar that a client sent can be compiled, found out in a process that can be killed.

The compiler bounds most of its work, but some schemas take it minutes (a ``multipleOf`` of nine digits, twenty patterns
in one ``allOf``), and native code in a thread cannot be stopped. What passes here takes the engine no longer.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from premoe_runtime.formats.errors import InvalidInput, Unavailable

if TYPE_CHECKING:
    # Imported where it is needed: who asks for no grammar does not wait for it.
    from llguidance import LLParserLimits

CPU_SECONDS = 2
"""Of one grammar. Common ones take milliseconds."""
_MEMORY_BYTES = 2 << 30
_WALL_SECONDS = 60.0
_LONGEST = 300
"""Characters of a reason: compilers quote what they were given."""
_REMEMBERED = 256
"""Grammars whose verdict is kept: clients send the same few."""
_verdicts: OrderedDict[str, str] = OrderedDict()
_lock = threading.Lock()


def check_grammar(grammar: str) -> None:
    """Raise InvalidInput (GRAMMAR_INVALID) for a grammar that cannot be compiled in bounded time and memory.

    Takes some 0.1 s for one not seen before.
    """
    problem = verdict(grammar)
    if problem is None:
        problem = _problem(grammar)
        with _lock:
            _verdicts[grammar] = problem
            if len(_verdicts) > _REMEMBERED:
                _verdicts.popitem(last=False)
    if problem:
        raise InvalidInput(problem, reason="GRAMMAR_INVALID")


def verdict(grammar: str) -> str | None:
    """What is remembered to be wrong with a grammar; empty: nothing is, None: nobody knows yet. At once."""
    with _lock:
        if grammar in _verdicts:
            _verdicts.move_to_end(grammar)
        return _verdicts.get(grammar)


def _problem(grammar: str) -> str:
    """Empty: there is none."""
    command = [sys.executable, "-I", "-m", __name__]
    try:
        done = subprocess.run(
            command, input=grammar.encode(), capture_output=True, timeout=_WALL_SECONDS, env={}, check=False
        )
    except subprocess.TimeoutExpired:
        raise Unavailable("no time to compile the grammar; try again later", reason="GRAMMAR_UNCHECKED") from None
    if done.returncode < 0:
        return "it takes too long, or too much memory, to compile; make it simpler"
    if done.returncode:
        raise Unavailable("the grammar cannot be checked: its process failed", reason="GRAMMAR_UNCHECKED")
    return done.stdout.decode(errors="replace")


def limits() -> LLParserLimits:
    """What compiling and each step may take: some 20 ms a step and 100 MB at most."""
    from llguidance import LLParserLimits

    return LLParserLimits(max_lexer_states=50_000, verbose_errors=False)


class _Bytes:
    """The smallest vocabulary: what a grammar costs hardly depends on it."""

    eos_token_id, bos_token_id = 256, None
    tokens = [bytes([value]) for value in range(256)] + [b"<eos>"]
    special_token_ids = (256,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def _main() -> None:
    """The child's: one grammar from stdin, what is wrong with it to stdout."""
    from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + 1 + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    matcher = LLMatcher(
        LLTokenizer(TokenizerWrapper(_Bytes())), sys.stdin.buffer.read().decode(), log_level=0, limits=limits()
    )
    if not matcher.is_error():
        matcher.compute_bitmask()
    os.write(1, " ".join(matcher.get_error().split())[:_LONGEST].encode())


if __name__ == "__main__":
    _main()
