"""The base layer: the running Python moved to /usr/local, its libraries, CA certificates, users. No shell.

The folder names below come from the interpreter, so that a Python of pyenv, of Debian or of a Docker image works alike.
Python finds its standard library from the place of its binary (the first `lib/pythonX.Y/os.py` above it), and a shared
libpython by the loader's default path.
"""

from __future__ import annotations

import shutil
import ssl
import subprocess
import sys
import sysconfig
from pathlib import Path

from rootfs import libraries

USER_ID = 65532
VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
PREFIX = "usr/local"
LEFT_OUT = {
    "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "pydoc_data", "__pycache__",
    "site-packages", "dist-packages",
}  # fmt: skip
"""Parts of the standard library that no server needs."""
CERTIFICATES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")


def write_base(root: Path) -> None:
    """Write the base file system to the empty folder ``root``. Raises OSError."""
    _copy_python(root)
    _copy_certificates(root)
    _write_system(root)
    compile_all(root / PREFIX / "lib" / VERSION, root)
    programs = [Path(root, PREFIX, "bin", VERSION), *libraries.shared_objects(root)]
    libraries.copy_into(root, libraries.closure(programs) | libraries.always())


def compile_all(folder: Path, root: Path) -> None:
    """Compile what is below ``folder``, as if ``root`` were /: containers cannot, their root is read-only.

    The compiled files say nothing about dates, which images do not keep. Raises OSError.
    """
    command = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "-s", str(root)]
    # Packages ship templates that are no valid Python: compileall then exits 1, and the file stays uncompiled.
    subprocess.run(
        [*command, "-p", "/", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
    )


def _copy_python(root: Path) -> None:
    binary = root / PREFIX / "bin" / VERSION
    binary.parent.mkdir(parents=True)
    shutil.copy2(Path(sys.executable).resolve(), binary)
    for name in ("python3", "python"):
        (binary.parent / name).symlink_to(VERSION)
    standard = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix}))
    shutil.copytree(standard, root / PREFIX / "lib" / VERSION, symlinks=False, ignore=_left_out)


def _left_out(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name in LEFT_OUT or name.startswith("config-")}


def _copy_certificates(root: Path) -> None:
    """The system's bundle, where this Python's OpenSSL and most other libraries look for it."""
    paths = ssl.get_default_verify_paths()
    candidates = [paths.cafile, *CERTIFICATES]
    bundle = next((Path(path) for path in candidates if path and Path(path).is_file()), None)
    if bundle is None:
        raise FileNotFoundError("no CA certificates on this system; install ca-certificates")
    target = root / "etc/ssl/certs/ca-certificates.crt"
    target.parent.mkdir(parents=True)
    shutil.copyfile(bundle, target)
    link = root / Path(paths.openssl_cafile).relative_to("/")
    if not link.exists():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to("/etc/ssl/certs/ca-certificates.crt")


def _write_system(root: Path) -> None:
    etc = root / "etc"
    (etc / "passwd").write_text(
        f"root:x:0:0:root:/root:/sbin/nologin\npremoe:x:{USER_ID}:{USER_ID}:premoe:/tmp:/sbin/nologin\n"
    )
    (etc / "group").write_text(f"root:x:0:\npremoe:x:{USER_ID}:\n")
    (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
    for name, mode in (("tmp", 0o1777), ("proc", 0o755), ("sys", 0o755), ("dev", 0o755), ("run", 0o755)):
        (root / name).mkdir()
        (root / name).chmod(mode)
