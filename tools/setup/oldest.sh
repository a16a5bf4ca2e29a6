#!/usr/bin/env bash
# Makes .venv-oldest at the root of the repository: the oldest Celery whose clients are served, with the kombu and the Redis
# client of its time. Does nothing, at once, when it is there.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
venv="$root/.venv-oldest"
stamp="$venv/.stamp"
want="$venv $(cksum <"${BASH_SOURCE[0]}")"

[ -x "$venv/bin/python" ] && "$venv/bin/python" -c '' 2>/dev/null &&
    [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && exit 0

printf 'setup: making .venv-oldest (Celery 5.3)\n' >&2
rm -rf "$venv"
# The interpreter of .venv, which was looked for already.
"$root/.venv/bin/python" -m venv "$venv"
"$venv/bin/python" -m pip --quiet --disable-pip-version-check --no-input \
    install 'celery[redis]==5.3.0' 'kombu==5.3.0' 'redis==4.6.*' 'vine<5.2' 'setuptools<81'
printf '%s\n' "$want" >"$stamp"
