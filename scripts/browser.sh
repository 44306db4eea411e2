#!/usr/bin/env bash
# See to it that there is a Chromium for the browser's tests. Prints its path, or nothing where there is none and none can be had.
set -euo pipefail

find_browser() {
  local name
  for name in chromium chromium-browser google-chrome; do
    if command -v "$name"; then return 0; fi
  done
  return 1
}

if find_browser; then exit 0; fi
if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
  echo "browser.sh: installing chromium for the browser's tests" >&2
  log="$(mktemp)"
  if { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends chromium; } >"$log" 2>&1; then
    rm -f "$log"
    find_browser && exit 0
  fi
  echo "browser.sh: that failed: $(tail -n 1 "$log")" >&2
fi
echo "browser.sh: no Chromium: the browser's tests will be skipped (Debian: apt-get install chromium)" >&2
