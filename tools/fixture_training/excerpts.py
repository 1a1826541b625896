"""Cut the open-text excerpts that are committed beside the task generators.

Run once, with the Python whose standard library is to be quoted: `python -m fixture_training.excerpts`. Only modules
that carry no copyright or licence notice of their own are quoted, so all text is under the PSF licence.
"""

import json
import platform
import re
import sysconfig
from pathlib import Path

from premoe_local.tasks.draw import Draw
from premoe_local.tasks.open_text import (
    EXCERPTS,
    LENGTH,
    code_pieces,
    held_out,
    prose_pieces,
    prose_sources,
    stdlib_modules,
)

SPLITS = {"calibration": 256, "validation": 256, "test": 256}
HEADER_SPLITS = {"calibration": 16, "validation": 16, "test": 160}
NOTICE = (
    "Excerpts of the source code, documentation and C headers of CPython {version}. Copyright (c) 2001-2023 Python "
    "Software Foundation; All Rights Reserved. Used under the Python Software Foundation License Version 2 "
    "(PSF-2.0), see excerpts.LICENSE. Changes: cut to short excerpts; white space of prose normalised."
)


def _unlicensed(text: str) -> bool:
    return not re.search(r"copyright|licen[cs]e|author", text, re.IGNORECASE)


def _header_pieces() -> list[str]:
    pieces: list[str] = []
    for path in sorted(Path(sysconfig.get_paths()["include"]).rglob("*.h")):
        text = path.read_text(encoding="utf-8")
        if not text.isascii() or not _unlicensed(text):
            continue
        bare = re.sub(r"\n{2,}", "\n", re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL))
        pieces += [p.strip() for p in (bare[i : i + 160] for i in range(0, len(bare) - 160, 160))]
    return [piece for piece in pieces if re.search(r"[;{}]|#", piece) and len(piece) > 120]


def _divide(name: str, pieces: list[str], sizes: dict[str, int]) -> dict[str, list[str]]:
    wanted = sum(sizes.values())
    chosen = Draw("excerpts", name).shuffled(sorted(set(pieces)))[:wanted]
    if len(chosen) < wanted:
        raise SystemExit(f"{name}: only {len(chosen)} pieces, {wanted} are needed")
    result: dict[str, list[str]] = {}
    start = 0
    for split, size in sizes.items():
        result[split] = chosen[start : start + size]
        start += size
    return result


def main() -> None:
    """Write the excerpts file."""
    modules = [(name, text) for name, text in stdlib_modules() if held_out(name) and _unlicensed(text)]
    names = {name for name, _ in modules}
    py = [piece for _, text in modules for piece in code_pieces(text)]
    prose = [
        piece
        for name, text in prose_sources()
        if held_out(name) and (name in names or name.startswith("topic:"))
        for piece in prose_pieces(text)
    ]
    data = {
        "notice": NOTICE.format(version=platform.python_version()),
        "excerpts": {
            "py": _divide("py", py, SPLITS),
            "prose": _divide("prose", prose, SPLITS),
            "c_header": _divide("c_header", _header_pieces(), HEADER_SPLITS),
        },
    }
    EXCERPTS.write_text(json.dumps(data, indent=0) + "\n", encoding="utf-8")
    print(f"{EXCERPTS.name}: {EXCERPTS.stat().st_size} bytes, longest {LENGTH} characters")


if __name__ == "__main__":
    main()
