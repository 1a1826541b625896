#!/usr/bin/env bash
# Puts Run:ai's model streamer into the folder $2, beside the packages of the environment $1, for `make bench-cold`, which nothing
# else uses. Where it cannot be had ends with 3.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1 folder=$2
[ "$folder/.installed" -nt tools/install_loaders.sh ] && exit 0
if ! "$(tools/uv.sh)" pip install -q --python "$venv/bin/python" --target "$folder" --no-deps \
    runai-model-streamer==0.17.1 runai-model-streamer-s3==0.17.1 humanize boto3 botocore jmespath s3transfer python-dateutil six urllib3; then
  echo "the model streamer is left out: it cannot be installed here (above says why)" >&2
  exit 3
fi
touch "$folder/.installed"
