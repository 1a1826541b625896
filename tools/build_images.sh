#!/usr/bin/env bash
# Builds the image of every deployable with docker, podman or buildah: build_images.sh PREFIX TAG. Pushing is up to you.
set -euo pipefail
cd "$(dirname "$0")/.."
prefix=$1 tag=$2
for builder in docker podman buildah ""; do
  [ -z "$builder" ] || ! command -v "$builder" >/dev/null || break
done
[ -n "$builder" ] || { echo "building images takes docker, podman or buildah; none of them is here" >&2; exit 2; }
for file in operator/Dockerfile services/{retrieval,expert_store,gateway,worker}/Dockerfile; do
  part=$(basename "$(dirname "$file")")
  name=${prefix}premoe-${part//_/-}:$tag
  echo "building $name" >&2
  "$builder" build --file "$file" --tag "$name" .
done
