#!/usr/bin/env bash
# Installs Debian packages given as arguments, as root or through sudo; says what to do where neither works.
set -euo pipefail
if [ "$(id -u)" = 0 ]; then as_root=(); elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then as_root=(sudo); else
  echo "error: $* must be installed; run: apt-get install -y $* (as root), then try again" >&2; exit 1
fi
command -v apt-get >/dev/null || { echo "error: $* must be installed with this system's package manager (apt-get was not found)" >&2; exit 1; }
# policy-rc.d keeps Debian from starting the servers it installs: tests start their own on free ports.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee $policy >/dev/null; "${as_root[@]}" chmod +x $policy
  trap '"${as_root[@]}" rm -f $policy' EXIT
fi
"${as_root[@]}" apt-get update -qq
DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "$@" >/dev/null
