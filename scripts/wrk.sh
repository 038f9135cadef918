#!/usr/bin/env bash
# The benchmarks measure with wrk. Install it where that can be done without asking; say how where not.
set -euo pipefail
command -v wrk >/dev/null && exit 0
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    echo "bench: installing wrk"
    if apt-get install -y -qq wrk >/dev/null 2>&1 || { apt-get update -qq && apt-get install -y -qq wrk; }; then
        exit 0
    fi
fi
echo "bench: 'make bench' measures with wrk, which is not here: install it ('apt-get install wrk' as root), then run this again" >&2
exit 1
