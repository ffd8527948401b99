#!/usr/bin/env bash
# The gate:  test.sh check|test
#
#   test     everything: installs what is missing, then all checks and all tests. What CI runs.
#   check    the same without the real clients and without installing them
#
# One line per step with the time it took; stops at the first step that fails. Quick checks come
# first, and the tests last, so that their summary closes the output.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly mode="${1:-test}"
readonly cache="${POOLGATE_CACHE:-${HOME:?set HOME or POOLGATE_CACHE}/.cache/poolgate}"
export POOLGATE_CACHE="$cache"
export PATH="$cache/bin:$PATH:${HOME:-}/.cargo/bin"

seconds() { date +%s.%N; }
since() { awk -v from="$1" -v to="$(seconds)" 'BEGIN { printf "%.1f s", to - from }'; }

step() { # name, command
    local name="$1" started
    shift
    started=$(seconds)
    printf '==> %s\n' "$name"
    if "$@"; then
        printf '<== %s: ok, %s\n' "$name" "$(since "$started")"
    else
        printf '<== %s: FAILED, %s (%s)\n' "$name" "$(since "$started")" "$*" >&2
        exit 1
    fi
}

case "$mode" in
    test) parts=(build tools clients) selection=() ;;
    check) parts=(build tools) selection=(-E 'not binary_id(poolgate::clients)') ;;
    *) echo "usage: test.sh check|test" >&2; exit 2 ;;
esac

begun=$(seconds)
step setup scripts/setup.sh "${parts[@]}"
step fmt cargo fmt --all --check
step deny cargo deny --locked check --hide-inclusion-graph licenses bans sources
step clippy cargo clippy --workspace --all-targets --locked -- -D warnings
# `cargo test --doc` without an example would report a run of no tests.
if grep -rqE '^ *//[/!] ```' crates/*/src; then
    step doctests cargo test --workspace --doc --locked --quiet
fi
step tests cargo nextest run --workspace --locked ${selection[@]+"${selection[@]}"}
printf '\nmake %s: ok, %s\n' "$mode" "$(since "$begun")"
