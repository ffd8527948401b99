#!/usr/bin/env bash
# Builds the program as it is meant to be run, and prints where it is:  release.sh
#
# Twice: first with counters inside, with which it does the work of the benchmark once; then with what
# they tell of it: what is hot, and which way branches go. That saves a quarter of a small request's
# CPU time and a fifth of what a lone answer is late by, beside `cargo build --release`.
#
# Cold halves of functions are put elsewhere: a lone turn finds all caches cold, and each page of the
# program that it touches costs it.
#
# What reads the counters is llvm-profdata, as new as rustc's LLVM: $LLVM_PROFDATA, or that of rustup's
# component llvm-tools. Without it the build is the plain one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
readonly target

say() { printf 'release: %s\n' "$*" >&2; }

find_profdata() {
    local found
    for found in "${LLVM_PROFDATA:-}" "$(rustc --print sysroot)"/lib/rustlib/*/bin/llvm-profdata; do
        [[ -x "$found" ]] || continue
        printf '%s\n' "$found"
        return
    done
    return 1
}

# Cargo gives no flags to build scripts and macros where a target is named.
build() { # folder, flag of rustc; prints where the program is
    RUSTFLAGS="$2" cargo build --locked --release --target "$host" --target-dir "$target/$1" \
        -p poolgate --bin poolgate >&2
    printf '%s\n' "$target/$1/$host/release/poolgate"
}

if ! profdata=$(find_profdata); then
    say "no llvm-profdata (rustup component add llvm-tools): a plain build"
    cargo build --locked --release -p poolgate --bin poolgate >&2
    printf '%s\n' "$target/release/poolgate"
    exit
fi
host=$(rustc -vV | sed -n 's/^host: //p')
readonly host profile="$target/poolgate.profdata"

say "with counters"
counting=$(build counting -Cprofile-generate)
if [[ ! "$profile" -nt "$counting" ]]; then
    say "the work of the benchmark"
    counts=$(mktemp -d "${TMPDIR:-/tmp}/poolgate-release.XXXXXX")
    trap 'rm -rf "$counts"' EXIT
    LLVM_PROFILE_FILE="$counts/%m-%p.profraw" scripts/bench.sh --train "$counting" >&2
    "$profdata" merge -o "$profile" "$counts"/*.profraw
fi
say "with what they tell"
build profiled "-Cprofile-use=$profile -Cllvm-args=-enable-split-machine-functions"
