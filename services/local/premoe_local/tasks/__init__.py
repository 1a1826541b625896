"""Generated tasks with checkable answers, for the tiny models and the demo.

Six tasks have exact answers (`EXACT`), two are open text judged by perplexity (`OPEN`); these eight are stored as
patterns (`STORED`). The fixture also trains on `sort` and `units`, which are never stored, and never sees `sub`,
`sql`, `log` and `c_header`: all six are `UNKNOWN` when serving. Standard library only.
"""

from premoe_local.tasks.arithmetic import ADD, ROMAN, SUB, UNITS
from premoe_local.tasks.draw import Draw, bucket
from premoe_local.tasks.example import Example, Generator, Payload, Split
from premoe_local.tasks.letters import REV, SORT
from premoe_local.tasks.machine_text import LOG, SQL
from premoe_local.tasks.open_text import open_examples
from premoe_local.tasks.records import JSON
from premoe_local.tasks.velish import KB, LANG

__all__ = ["EXACT", "NEVER_TRAINED", "OPEN", "STORED", "TRAINED", "UNKNOWN", "Example", "Split", "check", "examples"]

EXACT: tuple[str, ...] = ("add", "rev", "json", "roman", "lang", "kb")
OPEN: tuple[str, ...] = ("py", "prose")
STORED: tuple[str, ...] = EXACT + OPEN
TRAINED: tuple[str, ...] = (*STORED, "sort", "units")
NEVER_TRAINED: tuple[str, ...] = ("sub", "sql", "log", "c_header")
UNKNOWN: tuple[str, ...] = ("sort", "units", *NEVER_TRAINED)

_GENERATORS: dict[str, Generator] = {
    "add": ADD,
    "rev": REV,
    "json": JSON,
    "roman": ROMAN,
    "lang": LANG,
    "kb": KB,
    "sort": SORT,
    "units": UNITS,
    "sub": SUB,
    "sql": SQL,
    "log": LOG,
}

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
_SPLIT_OF_BUCKET: tuple[Split, ...] = ("calibration", "validation", "test", "test")
_BUCKETS = 16
_PATIENCE = 200


def examples(task: str, split: Split, count: int, seed: int = 0) -> list[Example]:
    """The first `count` examples of a task and split: the same on every machine and Python version.

    Splits share no payload (`kb` excepted: its facts are the same everywhere, only the wordings differ).
    `calibration`, `validation` and `test` have their own wordings, so that a cutoff chosen on validation prompts
    allows for wordings that the exemplars lack; `train` shows them all, as a large model's training would. Only the
    text of `py` and `prose` in `train` depends on the running Python.
    """
    if task in (*OPEN, "c_header"):
        return open_examples(task, split, count, seed)
    generator = _GENERATORS[task]
    draw = Draw(task, split, seed)
    result: list[Example] = []
    used: set[str] = set()
    misses = 0
    while len(result) < count:
        payload = generator.payload(draw)
        if payload.key and split_of(task, payload.key) != split:
            continue
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


def split_of(task: str, key: str) -> Split:
    """The one split that a payload belongs to."""
    number = bucket(f"{task}:{key}", _BUCKETS)
    return _SPLIT_OF_BUCKET[number] if number < len(_SPLIT_OF_BUCKET) else "train"


def _word(generator: Generator, payload: Payload, split: Split, draw: Draw) -> str:
    prompt = draw.pick(generator.wordings(split)).format(**payload.fields)
    if generator.framed and draw.chance(_FRAMED_SHARE):
        prompt = draw.pick(_FRAMES).format(q=prompt)
    return prompt
