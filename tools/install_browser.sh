#!/usr/bin/env bash
# Installs the browser of the console's tests from Debian: Chromium and its driver, which must be of one version.
set -euo pipefail
cd "$(dirname "$0")/.."
if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then exit 0; fi
# Elsewhere Chromium comes in other ways (a snap, a package without a driver): those tests are then skipped, and say so.
if ! tools/apt_install.sh chromium chromium-driver; then
  echo "note: no Chromium with a driver could be installed; tests of the console that need one are skipped" >&2
fi
