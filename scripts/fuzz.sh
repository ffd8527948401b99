#!/usr/bin/env bash
# Coverage-guided fuzzing by libFuzzer:  fuzz.sh [SECONDS [TARGET…]]
#
# Needs a C++ compiler, for libFuzzer itself, and nothing else: the instrumentation is the stable
# compiler's own, by the flags that cargo-fuzz passes too. Without AddressSanitizer, which would need
# a nightly compiler: our packages forbid `unsafe`, and what is looked for is a broken promise or a panic.
#
# Starts from fuzz/corpus, which is not written to: what is found on the way is kept in the cache. An
# input that breaks a target is written to fuzz/artifacts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../fuzz"
readonly seconds="${1:-600}"
shift $(($# > 0))
readonly cache="${POOLGATE_CACHE:-${HOME:?set HOME or POOLGATE_CACHE}/.cache/poolgate}/fuzz"
command -v c++ >/dev/null || { echo "fuzz: libFuzzer needs a C++ compiler (Debian: g++)" >&2; exit 1; }
host="$(rustc -vV | sed -n 's/^host: //p')"
readonly host

targets=("$@")
[[ ${#targets[@]} -gt 0 ]] || targets=(head events body socket config)

export CARGO_TARGET_DIR="${POOLGATE_FUZZ_TARGET:-$cache/target}"
# Given a target, cargo leaves build scripts and macros without these flags.
RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=16" \
    cargo build --locked --release --target "$host" "${targets[@]/#/--bin=}"

for target in "${targets[@]}"; do
    mkdir -p "$cache/corpus/$target" "artifacts/$target"
    printf '==> fuzz %s, %s s\n' "$target" "$seconds"
    "$CARGO_TARGET_DIR/$host/release/$target" -max_total_time="$seconds" -max_len=16384 \
        -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 -verbosity=0 \
        -artifact_prefix="artifacts/$target/" "$cache/corpus/$target" "corpus/$target"
done
