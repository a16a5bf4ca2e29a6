#!/usr/bin/env bash
# The main job, end to end: Redis, a model behind Ollama's API, orchestra-worker, Flower, and tasks from Python.
# `--check` verifies every part and leaves; without it, everything stays up until Ctrl-C.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
check=
[ "${1:-}" != --check ] || check=--check

say() { printf 'demo: %s\n' "$*" >&2; }

children=()
folder=$(mktemp -d)
tidy() {
    # Who closed the terminal must not end this half-way.
    trap - EXIT INT TERM
    trap '' HUP
    # The last started first; each stops what it started itself.
    for ((at = ${#children[@]} - 1; at >= 0; at--)); do
        kill -TERM "${children[at]}" 2>/dev/null || true
        wait "${children[at]}" 2>/dev/null || true
    done
    rm -rf "$folder"
}
trap tidy EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

free_port() {
    .venv/bin/python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Waits for a line in a file, as long as the process that writes it lives.
wait_for() {
    local text=$1 file=$2 process=$3 tries=0
    until grep -q -- "$text" "$file" 2>/dev/null; do
        if ! kill -0 "$process" 2>/dev/null || [ $((tries += 1)) -gt 1200 ]; then
            cat "$file" >&2
            say "this does not come up: $text"
            exit 1
        fi
        sleep 0.1
    done
}

say "building (release)"
cargo build --locked --release --workspace --bins --quiet

# A real Ollama if there is one.
{ read -r host || true; read -r has || true; } < <(.venv/bin/python tools/demo/hosts.py "${OLLAMA_HOST:-127.0.0.1}")
if [ -n "${host:-}" ]; then
    model=${MODEL:-$has}
    if [ -z "$model" ]; then
        say "Ollama at $host has no model: ollama pull llama3.2"
        exit 1
    fi
    say "the model is $model on the Ollama at $host"
elif [ -n "${OLLAMA_HOST:-}" ]; then
    say "OLLAMA_HOST is $OLLAMA_HOST, and nothing answers there"
    exit 1
else
    eval "$(tools/setup/engine.sh .demo/engine)"
    model=smollm2:135m
    target/release/ollama-sim --backend engine --host 127.0.0.1:0 --engine-python "$ENGINE_PYTHON" \
        --model-file "$ENGINE_MODEL" --threads 1 >"$folder/model" 2>&1 &
    children+=($!)
    wait_for 'ollama-sim listening on' "$folder/model" $!
    host=$(sed -n 's/^ollama-sim listening on //p' "$folder/model")
    say "no Ollama here: a stand-in answers, $model (135 million parameters, so do not expect wisdom)"
fi

redis_port=$(free_port)
flower_port=5555
! (exec 3<>/dev/tcp/127.0.0.1/$flower_port) 2>/dev/null || flower_port=$(free_port)
broker="redis://127.0.0.1:$redis_port/0"
OLLAMA_HOST=$host target/release/orchestra --broker "$broker" up \
    --data "$folder/data" --flower-port "$flower_port" -- -c 8 >"$folder/up" 2>"$folder/worker" &
children+=($!)
wait_for 'Ctrl-C stops' "$folder/up" $!
sed 's/^/demo: /' "$folder/up" | grep -v 'Ctrl-C\|orchestra is up' >&2

flower="http://127.0.0.1:$flower_port"
if ! .venv/bin/python tools/demo/demo.py --broker "$broker" --model "$model" --flower "$flower" $check; then
    say "the worker's log:"
    tail -n 40 "$folder/worker" >&2
    exit 1
fi
if [ -z "$check" ]; then
    say "Flower shows what happened: $flower    Send more: target/release/orchestra -b $broker send --help"
    say "Ctrl-C stops everything"
    wait "${children[-1]}"
fi
