"""Conversations that end with a request in some kind of wording."""

from dataclasses import dataclass

from premoe_local.tasks import Example, Split, examples
from premoe_local.tasks.catalogue import EXACT, EXCERPTED, GENERATORS, OPEN, draw_payload
from premoe_local.tasks.draw import Draw
from premoe_local.tasks.example import Payload
from premoe_local.tasks.wordings.casings import CASINGS
from premoe_local.tasks.wordings.contexts import FOLLOWING, GREETINGS, PAYLOADS, SYSTEMS
from premoe_local.tasks.wordings.frames import FRAMES
from premoe_local.tasks.wordings.kind import KINDS, SPLIT_OF_ROLE
from premoe_local.tasks.wordings.languages import ATTRIBUTES, LANGUAGES
from premoe_local.tasks.wordings.reworded import REWORDED
from premoe_local.tasks.wordings.strangers import STRANGERS

PLAIN = "plain"
"""No kind at all: the task's own wordings."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. ``task`` is what it belongs to; "" for greetings and system messages."""

    role: str
    content: str
    task: str


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation whose last turn wants an answer."""

    task: str
    kind: str
    turns: tuple[Turn, ...]
    answer: str
    """The exact answer; for open text, the continuation; "" where no answer is known."""

    @property
    def example(self) -> Example:
        """The last turn alone."""
        return Example(self.task, self.turns[-1].content, self.answer)


def applies(task: str, kind: str) -> bool:
    """Whether a kind has a wording for a task: casings want an instruction, languages and follow-ups a translation."""
    if kind == PLAIN:
        return True
    family, name = KINDS[kind].family, KINDS[kind].name
    if family == "casing":
        return task in GENERATORS and GENERATORS[task].framed
    if family == "reworded":
        return task in REWORDED[name]
    if family == "language":
        return task in LANGUAGES[name]
    if family == "follow":
        return task in PAYLOADS
    return True


def talks(task: str, kind: str, count: int, seed: int = 0, split: Split | None = None) -> list[Talk]:
    """The first ``count`` talks of a task in one kind of wording, the same on every machine.

    ``task`` is a task or a family of strangers. Payloads come from the split that belongs to the kind's role
    (``plain``: test) unless ``split`` names another. ValueError where the kind has no wording for the task.
    """
    if not applies(task, kind):
        raise ValueError(f"there is no {kind} wording of {task}: ask `applies` first")
    chosen = split or ("test" if kind == PLAIN else SPLIT_OF_ROLE[KINDS[kind].role])
    draw = Draw("talk", task, kind, chosen, seed)
    pool = _Pool(chosen, seed, draw)
    return [_talk(task, kind, pool) for _ in range(count)]


class _Pool:
    """Requests of any task in one split."""

    def __init__(self, split: Split, seed: int, draw: Draw) -> None:
        self.split, self.seed, self.draw = split, seed, draw
        self._cut: dict[str, list[Example]] = {}

    def request(self, task: str) -> Example:
        """The next request in the task's own wording."""
        if task in STRANGERS:
            return Example(task, STRANGERS[task].prompt(self.draw), "")
        if task in EXCERPTED:
            return self.excerpt(task)
        payload = self.payload(task)
        wording = self.draw.pick(GENERATORS[task].wordings(self.split))
        return Example(task, wording.format(**payload.fields), payload.answer)

    def payload(self, task: str) -> Payload:
        return draw_payload(task, self.split, self.draw)

    def excerpt(self, task: str) -> Example:
        if not self._cut.get(task):
            self._cut[task] = examples(task, self.split, _EXCERPTS[task], self.draw.below(2**31))
        return self._cut[task].pop()

    def worded(self, task: str, wordings: tuple[str, ...], attributes: dict[str, str] | None = None) -> Example:
        """The next request in one of the wordings."""
        wording = self.draw.pick(wordings)
        if task in OPEN:
            opening = self.excerpt(task)
            return Example(task, wording.format(q=opening.prompt), opening.answer)
        payload = self.payload(task)
        fields = dict(payload.fields)
        if attributes and task == "kb":
            fields["a"] = attributes[fields["a"]]
        return Example(task, wording.format(**fields), payload.answer)


_EXCERPTS = {"py": 200, "prose": 200, "c_header": 16}
"""Excerpts drawn at a time, no more than every split has."""


def _talk(task: str, kind: str, pool: _Pool) -> Talk:
    before: list[Turn] = []
    last: Example | None = None
    draw = pool.draw
    family, _, name = kind.partition(".")
    if family == "reworded":
        last = pool.worded(task, REWORDED[name][task])
    elif family == "language":
        last = pool.worded(task, LANGUAGES[name][task], ATTRIBUTES[name])
    elif family == "casing":
        last = pool.worded(task, tuple(CASINGS[name](each) for each in GENERATORS[task].wordings(pool.split)))
    elif family == "frame":
        request = pool.request(task)
        last = Example(task, draw.pick(FRAMES[name]).replace("{q}", request.prompt), request.answer)
    elif family == "system":
        before = [Turn("system", draw.pick(SYSTEMS[name]), "")]
    elif family == "turns":
        before = _earlier(task, name, pool)
    elif family == "follow":
        before = _answered(pool.request(task))
        last = pool.worded(task, tuple(each.replace("{x}", PAYLOADS[task]) for each in FOLLOWING[name]))
    last = last or pool.request(task)
    return Talk(task, kind, (*before, Turn("user", last.prompt, task)), last.answer)


def _answered(example: Example) -> list[Turn]:
    answer = example.answer or "I cannot help with that."
    return [Turn("user", example.prompt, example.task), Turn("assistant", answer, example.task)]


def _earlier(task: str, name: str, pool: _Pool) -> list[Turn]:
    """Earlier turns; excerpts, which are long and end anywhere, are never among them unless they are the task's own."""
    draw = pool.draw
    if name == "same":
        return _answered(pool.request(task))
    if name == "greeting":
        asked, answered = draw.pick(GREETINGS)
        return [Turn("user", asked, ""), Turn("assistant", answered, "")]
    if name == "unknown":
        return _answered(pool.request(draw.pick([each for each in ("sort", "units", "multiply") if each != task])))
    others = draw.sample([each for each in EXACT if each != task], 2 if name == "two-others" else 1)
    return [turn for other in others for turn in _answered(pool.request(other))]
