#!/usr/bin/env bash
# Creates the virtual environment given as $1 with uv, from constraints.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
say() { printf '\033[2m%s\033[0m\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

python=$(command -v python3) || die "python3 is missing; install Python 3.11 or newer"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "$($python --version) is too old; PreMoE needs Python 3.11 or newer"

find_uv() {
  if command -v uv >/dev/null; then echo uv; return; fi
  local home="${XDG_CACHE_HOME:-$HOME/.cache}/premoe/uv"
  if [ ! -x "$home/bin/uv" ]; then
    say "installing uv"
    if ! "$python" -m venv "$home" >/dev/null 2>&1; then
      [ "$(id -u)" = 0 ] || command -v sudo >/dev/null || die "python3-venv is missing; install it (apt-get install python3-venv) and run again"
      tools/apt_install.sh python3-venv >&2
      rm -rf "$home"; "$python" -m venv "$home"
    fi
    "$home/bin/pip" install -q --disable-pip-version-check uv
  fi
  echo "$home/bin/uv"
}

uv=$(find_uv)
[ -x "$venv/bin/python" ] || "$uv" venv -q --python "$python" "$venv"
say "installing packages (the first time downloads torch; later runs take seconds)"
# Compiled once here: where Python may not write bytecode itself, every start would compile torch and transformers anew.
"$uv" pip install -q --compile-bytecode --python "$venv/bin/python" -c constraints.txt -e '.[dev]'
