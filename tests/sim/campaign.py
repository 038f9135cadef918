"""Many seeds, one after the other or in several processes, and the one command that repeats what failed."""

from __future__ import annotations

import logging
import multiprocessing
import traceback
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from tests.sim.world import run


class Failure(NamedTuple):
    seed: int
    sentence: str

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.sentence}\n    repeat it with: .venv/bin/python -m tests.sim --seed {self.seed}"
        )


def try_seed(seed: int) -> Failure | None:
    """Live one story; return what was wrong with it. Product code logs as it should, so logs are switched off."""
    logging.disable(logging.CRITICAL)
    try:
        run(seed)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return Failure(seed, f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})")
    finally:
        logging.disable(logging.NOTSET)
    return None


def in_processes(seeds: Iterable[int], processes: int) -> Iterator[Failure]:
    """Live these stories in as many processes; yield what failed."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context) as pool:
        for failure in pool.map(try_seed, seeds, chunksize=50):
            if failure is not None:
                yield failure
