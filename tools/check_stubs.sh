#!/usr/bin/env bash
# Fails when the committed stubs are not what protos/ generates.
set -euo pipefail
cd "$(dirname "$0")/.."
copy=$(mktemp -d); trap 'rm -rf "$copy"' EXIT
mkdir -p "$copy/tools"; cp -r protos "$copy/protos"; cp tools/generate_stubs.sh "$copy/tools/"
PYTHON="$PWD/.venv/bin/python" "$copy/tools/generate_stubs.sh"
diff -r -x __pycache__ protos "$copy/protos" >/dev/null || { echo "error: stubs under protos/ are stale; run make protos" >&2; exit 1; }
