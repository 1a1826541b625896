"""Shared libraries that programs need and do not bring along."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

LINE = re.compile(r"(?:=> )?(/\S+) \(0x")
SHARED_OBJECT = re.compile(r"\.so(\.[0-9.]+)?$")
BATCH = 200
ALWAYS = (
    # Loaded by name at run time, or asked for by wheels mounted later: no closure shows them.
    "libnss_dns.so.2",
    "libnss_files.so.2",
    "libresolv.so.2",
    "librt.so.1",
    "libpthread.so.0",
    "libdl.so.2",
    "libutil.so.1",
    "libstdc++.so.6",
    "libgcc_s.so.1",
)


def shared_objects(folder: Path) -> list[Path]:
    """The shared objects below ``folder``, sorted."""
    return sorted(path for path in folder.rglob("*") if SHARED_OBJECT.search(path.name) and path.is_file())


def closure(files: Iterable[Path]) -> set[Path]:
    """Libraries that the system's loader would load for ``files``, the loader included. Raises OSError."""
    found: set[Path] = set()
    listed = [str(path) for path in files]
    for start in range(0, len(listed), BATCH):
        # ldd fails for a file of another architecture; what it says about the others still counts.
        answer = subprocess.run(["ldd", *listed[start : start + BATCH]], capture_output=True, text=True, check=False)
        found.update(Path(path) for path in LINE.findall(answer.stdout))
    return found


def always() -> set[Path]:
    """Those of `ALWAYS` that this system has."""
    answer = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    found: dict[str, Path] = {}
    for line in answer.splitlines():
        name, _, path = line.strip().partition(" => ")
        found.setdefault(name.split(" ")[0], Path(path))
    return {found[name] for name in ALWAYS if name in found}


def copy_into(root: Path, libraries: Iterable[Path], *, present: Iterable[Path] = ()) -> None:
    """Copy libraries of the system below ``root``, unless it or a root of ``present`` has them. Raises OSError."""
    roots = [root, *present]
    for library in sorted(libraries):
        if any(library.is_relative_to(other) for other in roots):
            continue
        relative = place(library)
        if any((other / relative).exists() for other in roots):
            continue
        target = root / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(library.resolve(), target)


def place(library: Path) -> Path:
    """Where a library goes, below the root: the loader of a container finds it without help.

    A libpython of pyenv lies where only its binary's run path looks, so it moves to /usr/lib.
    """
    if library.is_relative_to("/lib") or library.is_relative_to("/lib64") or library.is_relative_to("/usr"):
        return library.relative_to("/")
    return Path("usr/lib", library.name)
