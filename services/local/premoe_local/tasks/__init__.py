"""Generated tasks with checkable answers, for the tiny models and the demo.

Six tasks have exact answers (`EXACT`), two are open text judged by perplexity (`OPEN`); these eight are stored as
patterns (`STORED`). The fixture also trains on `sort` and `units`, which are never stored, and never sees `sub`,
`sql`, `log` and `c_header`: all six are `UNKNOWN` when serving. Standard library only.
"""

from premoe_local.tasks.catalogue import (
    EXACT,
    EXCERPTED,
    GENERATORS,
    NEVER_TRAINED,
    OPEN,
    STORED,
    TRAINED,
    UNKNOWN,
    draw_payload,
)
from premoe_local.tasks.draw import Draw
from premoe_local.tasks.example import Example, Generator, Payload, Split
from premoe_local.tasks.open_text import open_examples

__all__ = ["EXACT", "NEVER_TRAINED", "OPEN", "STORED", "TRAINED", "UNKNOWN", "Example", "Split", "check", "examples"]

_FRAMES = (
    "Please help. {q}",
    "{q} Thanks.",
    "Quick one: {q}",
    "{q} Answer only.",
    "Hello. {q}",
    "Next: {q}",
    "{q} Be exact.",
    "One more question. {q}",
)
_FRAMED_SHARE = 0.3
_PATIENCE = 200


def examples(task: str, split: Split, count: int, seed: int = 0) -> list[Example]:
    """The first `count` examples of a task and split: the same on every machine and Python version.

    Splits share no payload (`kb` excepted: its facts are the same everywhere, only the wordings differ).
    `calibration`, `validation` and `test` have their own wordings, so that a cutoff chosen on validation prompts
    allows for wordings that the exemplars lack; `train` shows them all, as a large model's training would. Only the
    text of `py` and `prose` in `train` depends on the running Python.
    """
    if task in EXCERPTED:
        return open_examples(task, split, count, seed)
    generator = GENERATORS[task]
    draw = Draw(task, split, seed)
    result: list[Example] = []
    used: set[str] = set()
    misses = 0
    while len(result) < count:
        payload = draw_payload(task, split, draw)
        prompt = _word(generator, payload, split, draw)
        if prompt in used and misses < _PATIENCE:
            misses += 1
            continue
        misses = 0
        used.add(prompt)
        result.append(Example(task, prompt, payload.answer))
    return result


def check(example: Example, answer_text: str) -> bool:
    """Whether an answer is exactly right, white space at its ends aside."""
    return answer_text.strip() == example.answer.strip()


def _word(generator: Generator, payload: Payload, split: Split, draw: Draw) -> str:
    prompt = draw.pick(generator.wordings(split)).format(**payload.fields)
    if generator.framed and draw.chance(_FRAMED_SHARE):
        prompt = draw.pick(_FRAMES).format(q=prompt)
    return prompt
