#!/usr/bin/env bash
# Creates the virtual environment $1 with llama.cpp for `make bench-serve`, which nothing else uses. It is compiled here, for this
# processor. Where it cannot be had ends with 3.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
stamp=$venv/.installed
[ "$stamp" -nt tools/install_llama.sh ] && exit 0
uv=$(tools/uv.sh)
[ -x "$venv/bin/python" ] || "$uv" venv -q --python "$(command -v python3)" "$venv"
echo "compiling llama.cpp into $venv (once, some 7 minutes on two cores)" >&2
export CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_CURL=OFF"
if ! "$uv" pip install -q --python "$venv/bin/python" llama-cpp-python==0.3.36 gguf==0.19.0 safetensors; then
  echo "llama.cpp is left out: it cannot be installed here, which takes a C++ compiler and the package's source (above says why)" >&2
  exit 3
fi
touch "$stamp"
