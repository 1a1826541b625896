#!/usr/bin/env bash
# Regenerates the committed stubs under protos/ (old output is deleted first, so nothing stale survives).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
bin=$(dirname "$python")
find protos -name '*_pb2*.py*' -delete
PATH="$bin:$PATH" "$python" -m grpc_tools.protoc -I protos \
  --python_out=protos --grpc_python_out=protos --mypy_out=quiet:protos --mypy_grpc_out=quiet:protos \
  $(find protos -name '*.proto' | sort)
