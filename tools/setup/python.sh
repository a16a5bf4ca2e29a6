#!/usr/bin/env bash
# Makes .venv at the root of the repository: Celery, Flower, pytest and, where it is there, our own client in editable
# mode. Does nothing, at once, when the environment already holds what is asked for. PYTHON names another interpreter.
set -euo pipefail

say() { printf 'setup: %s\n' "$*" >&2; }

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
venv="$root/.venv"
client="$root/python-client"
stamp="$venv/.stamp"

# What the environment is made from. An editable package needs another installation only when its metadata change.
inputs=("$here/requirements.txt" "${BASH_SOURCE[0]}")
[ ! -f "$client/pyproject.toml" ] || inputs+=("$client/pyproject.toml")
# The path too: a venv that was moved or copied does not work.
want="$venv $(cat "${inputs[@]}" | cksum)"

[ -x "$venv/bin/python" ] && "$venv/bin/python" -c '' 2>/dev/null &&
    [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && exit 0

# Celery 5.7 needs Python 3.10.
python=
for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python3.10}; do
    if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    say "found no Python 3.10 or later with venv${PYTHON:+ named $PYTHON}; tools/setup/debian.sh installs one"
    exit 1
fi

say "making .venv (Celery, Flower, pytest)"
# A half-made environment has no stamp, so it is made again; one whose Python is gone as well.
rm -rf "$venv"
"$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --quiet --disable-pip-version-check --no-input)
"${pip[@]}" install -r "$here/requirements.txt"
if [ -f "$client/pyproject.toml" ]; then
    # What it depends on is installed above, in the version that the tests are about.
    "${pip[@]}" install --no-deps --editable "$client"
fi
printf '%s\n' "$want" >"$stamp"
