"""docs/troubleshooting.md has one section for each reason, and none for others."""

from __future__ import annotations

import re
from pathlib import Path

from premoe_operator.api.reasons import Reason

PAGE = Path(__file__).parents[3] / "docs/troubleshooting.md"


def test_every_reason_has_one_section() -> None:
    sections = re.findall(r"^### (\w+)$", PAGE.read_text(), flags=re.MULTILINE)
    assert sorted(sections) == sorted(reason.value for reason in Reason)


def test_no_section_is_empty() -> None:
    texts = re.split(r"^### \w+$", PAGE.read_text(), flags=re.MULTILINE)[1:]
    assert all(text.split("\n## ")[0].strip() for text in texts)
