#!/usr/bin/env bash
# Writes constraints.txt: exact versions of everything, free of index addresses.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=$(command -v uv || echo "${XDG_CACHE_HOME:-$HOME/.cache}/premoe/uv/bin/uv")
"$uv" pip compile -q --universal --python-version 3.11 --no-annotate --no-header --no-emit-index-url --all-extras pyproject.toml -o constraints.txt.new
mv constraints.txt.new constraints.txt
