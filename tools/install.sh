#!/usr/bin/env bash
# Creates the virtual environment given as $1 with uv, from constraints.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
say() { printf '\033[2m%s\033[0m\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

python=$(command -v python3) || die "python3 is missing; install Python 3.11 or newer"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "$($python --version) is too old; PreMoE needs Python 3.11 or newer"
uv=$(tools/uv.sh)
[ -x "$venv/bin/python" ] || "$uv" venv -q --python "$python" "$venv"
say "installing packages (the first time downloads torch; later runs take seconds)"
# Compiled once here: where Python may not write bytecode itself, every start would compile torch and transformers anew.
"$uv" pip install -q --compile-bytecode --python "$venv/bin/python" -c constraints.txt -e '.[dev]'
