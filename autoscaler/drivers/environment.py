"""What replicas inherit: an environment in which libraries start no threads, and marks to find them by."""

from __future__ import annotations

import os
from pathlib import Path

HOME_VARIABLE = "SERVE_HOME_ID"
"""Which home's platform a process belongs to. Every descendant of a zygote or replica shows it in /proc."""
REPLICA_VARIABLE = "SERVE_REPLICA_ID"
REPLICA_ID_BYTES = 96
"""Room for a replica's id (name 63, `-r`, revision, `-`, 8), so that a fork can write its own over the zygote's."""

QUIET_LIBRARIES = {
    # onnxruntime's wheel starts a telemetry thread at import: children forked beside it abort on exit.
    "ORT_DISABLE_TELEMETRY": "1",
    # BLAS and OpenMP pools start at import too; engines set their own threads.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
}


def runtime_environment(home: Path, replica_id: str) -> dict[str, str]:
    """Return the environment of a replica or zygote of this home: ours, less what is the platform's own.

    `SERVE_*` variables hold the platform's settings and its token: a model's code has no business with them.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("SERVE_")}
    marks = {HOME_VARIABLE: str(home), REPLICA_VARIABLE: replica_id, "PYTHONUNBUFFERED": "1"}
    return inherited | QUIET_LIBRARIES | marks
