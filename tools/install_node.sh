#!/usr/bin/env bash
# Installs the Debian packages of the node tier: a container runtime, bridge networking, packet filters, connection
# tracking, an image builder. tools/apt_install.sh works as root or through sudo, says what to do otherwise, and keeps
# services stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
packages=(containerd runc containernetworking-plugins iptables nftables conntrack buildah)
# The first process of the node's namespaces is a few lines of C, built static.
command -v gcc >/dev/null || packages+=(gcc libc6-dev)
missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
[ ${#missing[@]} = 0 ] || tools/apt_install.sh "${missing[@]}"
