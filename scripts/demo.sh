#!/usr/bin/env bash
# The digits example from zero to zero, in a home of its own that is gone afterwards. `make demo` calls this.
set -euo pipefail
cd "$(dirname "$0")/.."

HOME_FOLDER=$(mktemp -d "${TMPDIR:-/tmp}/serve-demo.XXXXXX")
export SERVE_HOME=$HOME_FOLDER
unset SERVE_URL SERVE_TOKEN SERVE_HOST SERVE_PORT SERVE_ADMIN_PORT
PLATFORM_PID=""

say() { printf '\n\033[1m%s\033[0m\n' "$1"; }
[ -t 1 ] && [ -z "${NO_COLOR:-}" ] || say() { printf '\n%s\n' "$1"; }
show() {
    printf '$ %s\n' "$*"
    "$@"
}
field() { python -c "import json, sys; d = json.load(sys.stdin); print($1)"; }

is_running() { # a dead process that nobody has asked about yet has an entry, too
    [ -r "/proc/$1/status" ] && ! grep -q '^State:[[:space:]]*Z' "/proc/$1/status"
}

leave() {
    local status=$?
    trap - EXIT
    if [ "$status" != 0 ]; then
        printf '\nThe demo failed (status %s). Last lines of the platform:\n' "$status" >&2
        tail -n 20 "$HOME_FOLDER/logs/platform.log" >&2 || true
    fi
    serve down --wait 20s >/dev/null 2>&1 || true
    if [ -n "$PLATFORM_PID" ] && is_running "$PLATFORM_PID"; then
        kill -9 "$PLATFORM_PID" 2>/dev/null || true # its replicas die with it
    fi
    rm -rf "$HOME_FOLDER"
    exit "$status"
}
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

wait_for_zero() { # the pids that answered are gone, and the platform says so too
    local pids pid
    pids=$(serve status digits --json | field '*[r["pid"] for r in d["replicas"]]')
    for _ in $(seq 300); do
        if [ "$(serve status digits --json | field 'len(d["replicas"])')" = 0 ]; then
            for pid in $pids; do
                ! is_running "$pid" || { echo "process $pid is still there" >&2; return 1; }
            done
            [ -z "$pids" ] || echo "Process $(echo $pids) is gone."
            return
        fi
        sleep 0.1
    done
    echo "digits is still not at zero after 30 s" >&2
    return 1
}

say "1. Start the platform on this machine: one command, no database, no container."
show serve up --detach --port 0
PLATFORM_PID=$(field 'd["pid"]' <"$HOME_FOLDER/platform.json")

say "2. Deploy a model. The platform runs one real inference before it says 'deployed', and prints what it measured."
show serve deploy examples/digits/model.onnx --idle 5s

say "3. Leave it alone. After five seconds without a request no process is left of it, and it costs nothing."
wait_for_zero
show serve ls

say "4. Ask what is in a scan of a three. Nothing runs, so the request is held while a replica starts."
echo '$ serve predict digits --input examples/digits/three.json'
answer=$(serve predict digits --input examples/digits/three.json)
printf '%s\n' "$answer"
case $answer in
    *label*INT64*" 3"*) echo "It says 3, from zero." ;;
    *)
        echo "it does not say 3" >&2
        exit 1
        ;;
esac

say "5. Where the time of that cold start went, and which process answered."
show serve status digits

say "6. Leave it alone again."
wait_for_zero

say "7. What all of this cost, and the proof that the bill is complete."
show serve bill
show serve bill verify

say "8. Stop the platform. Nothing is left behind."
show serve down
if is_running "$PLATFORM_PID"; then
    echo "the platform (pid $PLATFORM_PID) is still there" >&2
    exit 1
fi

say "That was it. Your own: serve deploy model.onnx"
