#!/usr/bin/env bash
# Prints the path of uv; without one on the path, puts it into the cache first.
set -euo pipefail
cd "$(dirname "$0")/.."
if command -v uv; then exit; fi
home="${XDG_CACHE_HOME:-$HOME/.cache}/premoe/uv"
if [ ! -x "$home/bin/uv" ]; then
  printf '\033[2m%s\033[0m\n' "installing uv" >&2
  python=$(command -v python3) || { echo "error: python3 is missing; install Python 3.11 or newer" >&2; exit 1; }
  if ! "$python" -m venv "$home" >/dev/null 2>&1; then
    [ "$(id -u)" = 0 ] || command -v sudo >/dev/null || { echo "error: python3-venv is missing; install it (apt-get install python3-venv) and run again" >&2; exit 1; }
    tools/apt_install.sh python3-venv >&2
    rm -rf "$home"; "$python" -m venv "$home"
  fi
  "$home/bin/pip" install -q --disable-pip-version-check uv
fi
echo "$home/bin/uv"
