#!/usr/bin/env bash
# Writes constraints.txt: exact versions of everything but vLLM's environment, free of index addresses.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=$(tools/uv.sh)
"$uv" pip compile -q --universal --python-version 3.11 --no-annotate --no-header --no-emit-index-url --extra dev --extra harness pyproject.toml -o constraints.txt.new
mv constraints.txt.new constraints.txt
