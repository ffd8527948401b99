#!/usr/bin/env bash
# What a request costs in poolgate, beside nginx and a direct connection:
#
#   bench.sh [--json FILE] [--rounds N] [--only SHAPE] [--scale X] [--keep]
#   bench.sh --train PROGRAM
#
# The simulator is the upstream. poolgate runs as users run it: as release.sh builds it, with four
# accounts, a client key, records to disk, its default log. nginx does what of it nginx can do: it
# passes requests on with another credential, unbuffered, over kept-open connections. Both have two
# threads (two workers each) and both are asked for the same by the same client, in turns:
# direct, nginx, poolgate, direct, nginx, ... CPU time is user and system time of all threads of the
# proxy, with 0.4 s after each round for what it does later. The figures are medians of the rounds.
#
# "+ 1st byte" is what a proxy adds to the time to the first byte of a stream, and "+ 1st text" to that
# of the first word: of short streams, one after the other to each in turn, with a pause of 2 ms.
# Beside other streams it would depend on which of their events fall together. The simulator sends both
# at once. poolgate withholds the opening events, which carry nothing, until the first output, because
# until then it can still go to another account.
#
# Before that, what a choice costs: instructions by callgrind, among 10, 20 and 40 accounts, with
# every account able and no session at home, which is the dearest case.
#
# --keep leaves the temporary folder and says where it is. --train has the program do all of the work
# once, without nginx and without judging it. Exit status 1: above the limit.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# CPU per request may be so many times nginx's; per turn of a WebSocket, into which nginx does not look,
# a quarter more; and its first text may be 1.3 times as late as through nginx.
readonly limit=2.0
# Instructions of a choice among ten accounts.
readonly choice_limit=8000
readonly threads=2
readonly profile="${POOLGATE_BENCH_PROFILE:-release}"
readonly cache="${POOLGATE_CACHE:-${HOME:?set HOME or POOLGATE_CACHE}/.cache/poolgate}"
readonly nginx="$cache/bin/nginx"

fail() { printf 'bench: %s\n' "$*" >&2; exit 2; }

keep="" train=""
options=()
while [[ $# -gt 0 ]]; do
    case "$1" in
        --keep) keep=yes; shift ;;
        --train)
            [[ $# -gt 1 ]] || fail "$1 needs a program"
            train="$2"
            options+=(--rounds 1 --scale 0.3 --unjudged)
            shift 2
            ;;
        --json | --rounds | --only | --scale)
            [[ $# -gt 1 ]] || fail "$1 needs a value"
            options+=("$1" "$2")
            shift 2
            ;;
        *) fail "unknown argument $1; see the head of scripts/bench.sh" ;;
    esac
done

[[ "$(uname -s)" == Linux ]] || fail "reads CPU times from /proc, so it needs Linux"
[[ -n "$train" || -x "$nginx" ]] || fail "no nginx: run make bench, or scripts/setup.sh bench"
have_cargo() { command -v cargo >/dev/null; }
have_cargo || PATH="$HOME/.cargo/bin:$PATH"
have_cargo || fail "Rust is missing: install rustup, open a new shell, and run this again"
cargo build --locked --profile "$profile" -p poolgate-sim --bins --example compare
readonly built="${CARGO_TARGET_DIR:-target}/$profile"
if [[ -n "$train" ]]; then
    program="$train"
elif [[ "$profile" == release ]]; then
    program=$(scripts/release.sh)
else
    cargo build --locked --profile "$profile" -p poolgate --bin poolgate
    program="$built/poolgate"
fi
readonly program

# --- a choice

over=""
choose() { # accounts, times, [explained]
    valgrind --tool=callgrind --callgrind-out-file=/dev/null "$built/examples/choose" "$@" 2>&1 |
        sed -n 's/.*Collected : \([0-9]*\).*/\1/p'
}
each() { # accounts, [explained]; instructions of one choice
    echo $((($(choose "$1" 3000 "${@:2}") - $(choose "$1" 1000 "${@:2}")) / 2000))
}
choices() {
    local accounts plain
    command -v valgrind >/dev/null || fail "no valgrind: run make bench, or scripts/setup.sh bench"
    cargo build --locked --profile "$profile" -p poolgate-core --example choose
    printf 'a choice by headroom: %s\n' "instructions, and with its explanation"
    for accounts in 10 20 40; do
        plain=$(each "$accounts")
        printf '  %2s accounts %8s %8s\n' "$accounts" "$plain" "$(each "$accounts" explained)"
        [[ "$accounts" != 10 || "$plain" -le "$choice_limit" ]] || over="a choice among 10 accounts"
    done
    echo
}
[[ -n "$train" ]] || choices

# --- what is started is stopped

work=$(mktemp -d "${TMPDIR:-/tmp}/poolgate-bench.XXXXXX")
pids=()
clean_up() {
    local status=$? pid
    trap - EXIT INT TERM
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
    if [[ -n "$keep" ]]; then echo "bench: kept $work"; else rm -rf "$work"; fi
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

show() { cat "$work/$1.log" >&2; fail "$1 did not start"; }

wait_for() { # name of the log, command that succeeds when it is up
    local name="$1" tries
    shift
    for ((tries = 0; tries < 100; tries++)); do
        "$@" >/dev/null 2>&1 && return
        kill -0 "${pids[-1]}" 2>/dev/null || show "$name"
        sleep 0.1
    done
    show "$name"
}

# --- the simulator

account() { printf '{"kind":"openai","name":"key-%s","windows":[]}' "$1"; }
printf '{"journal":false,"accounts":[%s,%s,%s,%s]}' \
    "$(account 1)" "$(account 2)" "$(account 3)" "$(account 4)" >"$work/scenario.json"
"$built/poolgate-sim" --scenario "$work/scenario.json" >"$work/sim.out" 2>"$work/sim.log" &
pids+=($!)
wait_for sim grep -q 'openai key.*key-4' "$work/sim.out"
sim=$(sed -n 's,^url\t-\thttp://,,p' "$work/sim.out")
readonly sim
for n in 1 2 3 4; do
    sed -n "s/^openai key\tkey-$n\t//p" "$work/sim.out" | tr -d '\n' >"$work/key-$n"
done
upstream_key=$(<"$work/key-1")
readonly upstream_key

# --- poolgate

{
    printf 'listen = "127.0.0.1:0"\ndata_dir = "%s/data"\n' "$work"
    for n in 1 2 3 4; do
        printf '\n[[account]]\nname = "key-%s"\nkind = "openai"\nkey_file = "%s/key-%s"\n' \
            "$n" "$work" "$n"
        printf 'base_url = "http://%s/v1"\nprivate_upstream = true\n' "$sim"
    done
} >"$work/poolgate.toml"
poolgate() {
    env -u POOLGATE_MASTER_KEY -u RUST_LOG "$program" --config "$work/poolgate.toml" "$@"
}
client_key=$(poolgate key create bench | head -n 1)
POOLGATE__WORKERS=$threads POOLGATE_CONFIG="$work/poolgate.toml" env -u POOLGATE_MASTER_KEY \
    -u RUST_LOG "$program" serve 2>"$work/poolgate.log" &
pids+=($!)
readonly poolgate_pid=$!
wait_for poolgate grep -q 'serving.*address=' "$work/poolgate.log"
gateway=$(sed -n 's/.*serving.*address=\([0-9.:]*\).*/\1/p' "$work/poolgate.log" | head -n 1)
direct="direct,$sim,$upstream_key"
readonly direct
subject="poolgate,$gateway,$client_key,$poolgate_pid"
readonly subject
if [[ -n "$train" ]]; then
    "$built/examples/compare" "${options[@]}" --target "$direct" --target "$subject"
    exit
fi

# --- nginx

mkdir "$work/nginx"
is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
for port in $(shuf -i 20000-29999 -n 20); do ! is_free "$port" || break; done
as_user=""
[[ $(id -u) != 0 ]] || as_user="user $(id -un);"
cat >"$work/nginx.conf" <<END
$as_user
daemon off;
worker_processes $threads;
pid nginx.pid;
error_log stderr warn;
events { worker_connections 1024; }
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    keepalive_requests 10000000;
    client_max_body_size 128m;
    client_body_buffer_size 2m;
    map \$http_upgrade \$hop { default upgrade; '' ''; }
    upstream simulator {
        server $sim;
        keepalive 64;
        keepalive_requests 10000000;
    }
    server {
        listen 127.0.0.1:$port;
        location / {
            proxy_pass http://simulator;
            proxy_http_version 1.1;
            proxy_set_header Upgrade \$http_upgrade;
            proxy_set_header Connection \$hop;
            proxy_set_header Authorization "Bearer $upstream_key";
            proxy_buffering off;
        }
    }
}
END
"$nginx" -p "$work/nginx" -e stderr -c "$work/nginx.conf" 2>"$work/nginx.log" &
pids+=($!)
readonly nginx_pid=$!
is_up() { ! is_free "$port"; }
wait_for nginx is_up
workers=$(pgrep -d + -P "$nginx_pid")

# --- the comparison

version() { sed 's/.*[ /]//' <<<"$1"; }
model=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
about=(
    --about "poolgate $(version "$("$program" --version)") ($profile build),\
 nginx $(version "$("$nginx" -v 2>&1)"), $threads threads each"
    --about "$(nproc) × ${model:-unknown CPU}, Linux $(uname -r), $(date -u +%Y-%m-%d)"
)
"$built/examples/compare" --limit "$limit" "${about[@]}" ${options[@]+"${options[@]}"} \
    --target "$direct" \
    --target "nginx,127.0.0.1:$port,$upstream_key,$workers" \
    --target "$subject" || over="${over:-see the last lines}"
[[ -z "$over" ]] || { echo "bench: above the limit: $over" >&2; exit 1; }
