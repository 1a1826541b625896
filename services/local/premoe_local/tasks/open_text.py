"""Open text: `py` (Python source), `prose` (English documentation) and `c_header` (C declarations).

The calibration, validation and test excerpts come from `excerpts.json` beside this module, so they are the same on
every machine. Training text is read from the running Python's own standard library, leaving out the modules and
topics from which the excerpts were cut.
"""

import ast
import functools
import io
import json
import pydoc_data.topics
import re
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from premoe_local.tasks.draw import Draw, bucket
from premoe_local.tasks.example import Example, Split

EXCERPTS = Path(__file__).with_name("excerpts.json")
LENGTH = 230
"""Characters in an excerpt, opening and continuation together."""
_HELD_OUT_SHARE = 3
_PLAIN_SIGNS = str.maketrans({"\u201c": '"', "\u201d": '"', "\u2018": "'", "\u2019": "'", "\u2014": "-"})


def held_out(name: str) -> bool:
    """Whether a module or topic is kept for excerpts: a third of all, chosen by name."""
    return bucket(name, _HELD_OUT_SHARE) == 0


def cut(text: str, draw: Draw) -> tuple[str, str]:
    """Split an excerpt into an opening of 80 to 120 characters, ending between words, and the rest."""
    limit = draw.between(80, 120)
    space = text.rfind(" ", 80, limit + 1)
    place = space if space > 0 else limit
    return text[:place], text[place:]


def stdlib_modules() -> Iterator[tuple[str, str]]:
    """Name and source of every ASCII module of the running Python's standard library, tests left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if re.search(r"(^|/)(tests?|site-packages|idlelib|lib2to3|pydoc_data|encodings)/", name):
            continue
        try:
            yield name, path.read_text(encoding="ascii")
        except (UnicodeDecodeError, OSError):
            continue


def code_pieces(source: str) -> list[str]:
    """A module's source in pieces of one length, each starting at a line; docstrings stay, licences go."""
    lines = source.splitlines(keepends=True)
    pieces: list[str] = []
    piece = ""
    for line in lines:
        piece += line
        if len(piece) >= LENGTH:
            pieces.append(piece[:LENGTH].rstrip())
            piece = ""
    return [each for each in pieces if len(each) > LENGTH * 3 // 4 and _looks_like_code(each)]


def _looks_like_code(piece: str) -> bool:
    words = re.findall(r"[A-Za-z]+", piece)
    signs = sum(piece.count(sign) for sign in "=()[].:")
    return signs >= 12 and "opyright" not in piece and len(words) > 5 and "http" not in piece


def prose_pieces(text: str) -> list[str]:
    """The paragraphs of a text that read as English prose, cut to one length."""
    pieces: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.translate(_PLAIN_SIGNS)):
        flat = re.sub(r"\s+", " ", paragraph).strip()
        if len(flat) < LENGTH * 3 // 4 or not re.search(r"\bthe\b", flat):
            continue
        plain = sum(char.isalpha() or char == " " for char in flat) / len(flat)
        if plain > 0.88 and flat.isascii() and "opyright" not in flat and "http" not in flat:
            pieces += [flat[i : i + LENGTH] for i in range(0, len(flat) - LENGTH * 3 // 4, LENGTH)]
    return pieces


def docstrings(source: str) -> str:
    """All docstrings and comment blocks of a module, as paragraphs."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return ""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
    return "\n\n".join(texts + _comment_blocks(source))


def _comment_blocks(source: str) -> list[str]:
    blocks: list[str] = []
    last = -2
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line = token.string.lstrip("#").strip()
        if token.start[0] == last + 1 and blocks:
            blocks[-1] += f" {line}" if line else "\n\n"
        else:
            blocks.append(line)
        last = token.start[0]
    return blocks


def prose_sources() -> Iterator[tuple[str, str]]:
    """Name and text of everything in the standard library that may hold prose."""
    for name, topic in sorted(pydoc_data.topics.topics.items()):
        yield f"topic:{name}", topic
    for name, source in stdlib_modules():
        yield name, docstrings(source)


@functools.cache
def _training_texts(task: str) -> tuple[str, ...]:
    if task == "py":
        pieces = [p for name, source in stdlib_modules() if not held_out(name) for p in code_pieces(source)]
    elif task == "prose":
        pieces = [p for name, text in prose_sources() if not held_out(name) for p in prose_pieces(text)]
    else:
        raise ValueError(f"there is no training text for {task!r}: it is never trained")
    kept = set().union(*(excerpts(task, split) for split in ("calibration", "validation", "test")))
    return tuple(sorted(set(pieces) - kept))


@functools.cache
def _stored() -> dict[str, dict[str, list[str]]]:
    stored: dict[str, dict[str, list[str]]] = json.loads(EXCERPTS.read_text(encoding="utf-8"))["excerpts"]
    return stored


def excerpts(task: str, split: str) -> tuple[str, ...]:
    """The committed excerpts of a task and split."""
    return tuple(_stored()[task][split])


def open_examples(task: str, split: Split, count: int, seed: int) -> list[Example]:
    """`count` examples of open text; ValueError where fewer excerpts exist."""
    draw = Draw(task, split, seed)
    texts = _training_texts(task) if split == "train" else excerpts(task, split)
    if count > len(texts):
        raise ValueError(f"{task}/{split} has {len(texts)} excerpts, {count} were asked for")
    return [Example(task, *cut(text, draw)) for text in draw.shuffled(texts)[:count]]


def training_size(task: str) -> int:
    """How many training excerpts of a task the running Python's standard library holds."""
    return len(_training_texts(task))
