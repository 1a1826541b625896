"""Which tasks there are, and payloads of one split of them."""

from premoe_local.tasks.arithmetic import ADD, ROMAN, SUB, UNITS
from premoe_local.tasks.draw import Draw, bucket
from premoe_local.tasks.example import Generator, Payload, Split
from premoe_local.tasks.letters import REV, SORT
from premoe_local.tasks.machine_text import LOG, SQL
from premoe_local.tasks.records import JSON
from premoe_local.tasks.velish import KB, LANG

EXACT: tuple[str, ...] = ("add", "rev", "json", "roman", "lang", "kb")
OPEN: tuple[str, ...] = ("py", "prose")
STORED: tuple[str, ...] = EXACT + OPEN
TRAINED: tuple[str, ...] = (*STORED, "sort", "units")
NEVER_TRAINED: tuple[str, ...] = ("sub", "sql", "log", "c_header")
UNKNOWN: tuple[str, ...] = ("sort", "units", *NEVER_TRAINED)
EXCERPTED: tuple[str, ...] = (*OPEN, "c_header")
"""Tasks whose examples are cut from texts; the others are generated."""

GENERATORS: dict[str, Generator] = {
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

_SPLIT_OF_BUCKET: tuple[Split, ...] = ("calibration", "validation", "test", "test")
_BUCKETS = 16


def split_of(task: str, key: str) -> Split:
    """The one split that a payload belongs to."""
    number = bucket(f"{task}:{key}", _BUCKETS)
    return _SPLIT_OF_BUCKET[number] if number < len(_SPLIT_OF_BUCKET) else "train"


def draw_payload(task: str, split: Split, draw: Draw) -> Payload:
    """The next payload of a generated task that belongs to the split, or to all of them."""
    while True:
        payload = GENERATORS[task].payload(draw)
        if not payload.key or split_of(task, payload.key) == split:
            return payload
