"""Writes the table of values in charts/premoe/README.md from the comments in its values.yaml.

python tools/chart_readme.py            write it
python tools/chart_readme.py --check    fail when it is stale, naming the command that mends it
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

CHART = Path(__file__).parents[1] / "charts" / "premoe"
BEGIN = "<!-- values: made by tools/chart_readme.py -->"
END = "<!-- end of values -->"


class Undocumented(ValueError):
    """A value without a comment above it."""


@dataclass(frozen=True, slots=True)
class Value:
    """One row: dotted name, default as JSON, description."""

    name: str
    default: str
    description: str


@dataclass(frozen=True, slots=True)
class Section:
    """Values of one top-level key, or ("") those that stand at the top."""

    name: str
    description: str
    values: tuple[Value, ...]


def sections(text: str) -> tuple[Section, ...]:
    """The documented values of a values.yaml, single ones first. Raises Undocumented for one without a comment."""
    root = yaml.compose(text)
    if not isinstance(root, yaml.MappingNode):
        raise Undocumented("values.yaml holds no mapping")
    lines = text.splitlines()
    single: list[Value] = []
    found: list[Section] = []
    for key, node in root.value:
        inner = tuple(_values(key.value, node, _comment(lines, key), lines))
        if _is_leaf(node, lines):
            single += inner
        else:
            found.append(Section(key.value, _comment(lines, key), inner))
    return (Section("", "", tuple(single)), *found)


def table(text: str) -> str:
    """The values as Markdown."""
    parts = []
    for section in sections(text):
        if section.name:
            parts += [f"### `{section.name}`", "", *([section.description, ""] if section.description else [])]
        parts += ["| value | default | meaning |", "|---|---|---|"]
        parts += [f"| `{row.name}` | `{row.default}` | {row.description} |" for row in section.values]
        parts.append("")
    return "\n".join(parts)


def filled(readme: str, values: str) -> str:
    """The README with the table between its two marks. Raises ValueError when a mark is missing."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"README.md lacks {BEGIN} or {END}")
    return f"{before}{BEGIN}\n\n{table(values)}\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the table of values of the chart's README.")
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    options = parser.parse_args(arguments)
    path = CHART / "README.md"
    present = path.read_text()
    wanted = filled(present, (CHART / "values.yaml").read_text())
    if present == wanted:
        return 0
    if options.check:
        print("charts/premoe/README.md is stale; run: python tools/chart_readme.py", file=sys.stderr)
        return 1
    path.write_text(wanted)
    return 0


def _values(name: str, node: yaml.Node, description: str, lines: Sequence[str]) -> Iterator[Value]:
    if _is_leaf(node, lines):
        if not description:
            raise Undocumented(f"{name} has no comment")
        yield Value(name, _default(node), description.replace("|", "\\|"))
        return
    for key, inner in node.value:
        yield from _values(f"{name}.{key.value}", inner, _comment(lines, key), lines)


def _is_leaf(node: yaml.Node, lines: Sequence[str]) -> bool:
    """Everything but a block whose keys are documented one by one."""
    if not isinstance(node, yaml.MappingNode) or node.flow_style:
        return True
    return not any(_comment(lines, key) or not _is_leaf(inner, lines) for key, inner in node.value)


def _comment(lines: Sequence[str], key: yaml.Node) -> str:
    """The comment right above a key, as one line."""
    prefix = " " * key.start_mark.column + "#"
    number = key.start_mark.line
    first = number
    while first > 0 and lines[first - 1].startswith(prefix):
        first -= 1
    return " ".join(line.strip().removeprefix("#").strip() for line in lines[first:number])


def _default(node: yaml.Node) -> str:
    return json.dumps(yaml.safe_load(yaml.serialize(node)), ensure_ascii=False)


if __name__ == "__main__":
    sys.exit(main())
