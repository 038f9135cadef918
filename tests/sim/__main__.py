"""`python -m tests.sim`: stories from new seeds until stopped; with --seed one of them, told step by step."""

from __future__ import annotations

import argparse
import itertools
import logging
import random
import sys
import time

from tests.sim.campaign import Failure, try_seed
from tests.sim.world import run

_TOLD_EVERY = 500


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="live this one story and print its trace")
    parser.add_argument("--seconds", type=float, help="stop after as long; otherwise when told to (Ctrl-C)")
    parser.add_argument("--first", type=int, help="first seed; otherwise a new one")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        logging.disable(logging.CRITICAL)
        print("trace", run(arguments.seed, verbose=True))
        return 0
    first = random.SystemRandom().getrandbits(40) if arguments.first is None else arguments.first
    return _campaign(first, arguments.seconds)


def _campaign(first: int, seconds: float | None) -> int:
    began_s = time.monotonic()
    failures: list[Failure] = []
    count = 0
    try:
        for count, seed in enumerate(itertools.count(first), start=1):
            failure = try_seed(seed)
            if failure is not None:
                failures.append(failure)
                print(failure, flush=True)
            elapsed_s = time.monotonic() - began_s
            if count % _TOLD_EVERY == 0:
                print(f"{count} stories in {elapsed_s:.0f} s, {len(failures)} failed", flush=True)
            if seconds is not None and elapsed_s >= seconds:
                break
    except KeyboardInterrupt:
        pass
    print(f"{count} stories from seed {first} on, {len(failures)} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
