#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs the given Debian packages and prints which were missing. Services
# that a package brings (etcd) are not started: the tests start their own.
set -euo pipefail

missing=()
for p in "$@"; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
done
if [ ${#missing[@]} = 0 ]; then
  echo "make deps: already installed: $*"
  exit 0
fi
if [ "$(id -u)" != 0 ]; then
  echo "make deps: ${missing[*]} missing; installing needs root: sudo make deps" >&2
  exit 1
fi
if ! command -v apt-get >/dev/null; then
  echo "make deps: this is not a Debian system; install what these packages hold: ${missing[*]}" >&2
  exit 1
fi
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy" # 101: action forbidden (invoke-rc.d(8))
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
echo "make deps: installed ${missing[*]}"
