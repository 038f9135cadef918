#!/usr/bin/env bash
# Make .venv, or bring it up to date: scripts/setup.sh base|dev. `make` calls it only when a pin has changed.
set -euo pipefail
cd "$(dirname "$0")/.."
wanted=${1:?say what to install: base or dev}

fail() {
    printf 'setup: %s\n' "$1" >&2
    exit 1
}

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if is_new_enough "$candidate"; then
            printf '%s' "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or newer found: install one, or name it with 'make PYTHON=/path/to/python3 …'"
}

[ "$(uname -s)" = Linux ] || fail "ServeZero runs on Linux only, and this is $(uname -s): use a Linux machine or a virtual one"

if ! is_new_enough .venv/bin/python; then
    python=$(find_python)
    echo "setup: making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv ||
        fail "cannot make .venv: on Debian and Ubuntu install the package python3-venv, then run this again"
fi

echo "setup: installing requirements/$wanted.txt into .venv"
pip=(.venv/bin/python -m pip --disable-pip-version-check --quiet)
# The pins are complete: pip has nothing to resolve, and what is installed is what is written.
"${pip[@]}" install --no-deps -r "requirements/$wanted.txt" ||
    fail "pip cannot install requirements/$wanted.txt (its own words are above): it needs a package index it can reach"
"${pip[@]}" install --no-deps --no-build-isolation --editable .
