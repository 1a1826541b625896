"""The chart's README lists every value of values.yaml, with its default and its comment."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from support.charts import CHART, ROOT

TOOL = ROOT / "tools" / "chart_readme.py"


def test_readme_is_up_to_date() -> None:
    done = subprocess.run([sys.executable, str(TOOL), "--check"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_rows_hold_name_default_and_comment() -> None:
    readme = (CHART / "README.md").read_text()
    assert "| `qdrant.trial.enabled` | `false` | Run it. Not together with qdrant.url. |" in readme
    assert re.search(r"\| `expertStore\.resources` \| `\{\"requests\": .*\| CPU and memory of the container", readme)
    assert "| `watchNamespaces` | `[]` |" in readme


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: 1\n", "a has no comment"),
        ("# A.\na:\n  # B.\n  b: 1\n  c: 2\n", "a.c has no comment"),
        ("[]\n", "no mapping"),
    ],
)
def test_a_value_without_a_comment_is_refused(text: str, complaint: str) -> None:
    code = f"import chart_readme as c\ntry:\n    c.sections({text!r})\nexcept c.Undocumented as e:\n    print(e)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=TOOL.parent, check=True
    )
    assert complaint in done.stdout
