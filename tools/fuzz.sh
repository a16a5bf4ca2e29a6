#!/usr/bin/env bash
# Feeds every parser of what comes from outside for MINUTES each: with libFuzzer, which follows the branches of the code, where
# there are a nightly toolchain and cargo-fuzz (`cargo install cargo-fuzz`); else with seeds that are changed at random.
# Findings are left in fuzz/artifacts, and what was learnt in target/fuzz-corpus, from which the next run goes on.
set -euo pipefail

minutes=${1:-10}
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if ! cargo +nightly fuzz --version >/dev/null 2>&1; then
    echo "fuzz: no nightly toolchain with cargo-fuzz: seeds are changed without looking at the code" >&2
    cargo build --locked --workspace --bins --examples
    FUZZ_MINUTES=$minutes FUZZ_SEED=${SEED:-1} exec cargo test --locked --test it fuzz -- --nocapture
fi

for target in envelope body headers event pidbox template ndjson sse json chain entry time url secrets result config; do
    learnt=target/fuzz-corpus/$target
    mkdir -p "$learnt"
    echo "fuzz: $target, $minutes min" >&2
    log=target/fuzz-$target.log
    if ! cargo +nightly fuzz run "$target" "$learnt" "fuzz/corpus/$target" -- -print_final_stats=1 \
        -max_total_time=$((minutes * 60)) -timeout=5 -rss_limit_mb=1024 -max_len=65536 >"$log" 2>&1; then
        tail -n 60 "$log" >&2
        exit 1
    fi
    grep -E '^(Done|stat::)' "$log" >&2 || true
done
