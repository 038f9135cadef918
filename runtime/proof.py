"""Proves that a model answers a request in a batch as it does alone, before that is relied upon.

Shapes cannot tell: [time, feature] looks like [batch, feature], and a softmax over the wrong axis, a running sum or an
LSTM gives one row for each row and still mixes them. So the first batch is answered twice, joined and alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from runtime.decode import InferRequest
from runtime.encode import WrongRows
from runtime.tensors import Array

TOLERANCE = 0.02
"""Of the largest value: kernels round otherwise for other sizes, and dynamic quantization scales by the whole batch."""


class BatchProof:
    """What is known of one model's batches. Owned by the replica's main thread.

    The first batch of equal requests is checked, and the first of different ones: mixing equal rows may not show.
    """

    def __init__(self) -> None:
        self._unproven = {"equal", "different"}

    def check(
        self,
        batch: Sequence[InferRequest],
        results: dict[str, Array],
        alone: Callable[[InferRequest], dict[str, Array]],
    ) -> None:
        """Compare `results` of a batch of several with the first and the last member `alone`, while that is needed.

        Raise WrongRows where they differ, and whatever running them raises.
        """
        if not self._unproven:
            return
        first, last = batch[0], batch[-1]
        kind = "equal" if first.parts == last.parts else "different"
        if kind not in self._unproven or not first.layout.rows or not last.layout.rows:
            return
        rows = sum([request.layout.rows for request in batch])
        for request, begin in ((first, 0), (last, rows - last.layout.rows)):
            for name, array in alone(request).items():
                if not agree(results[name][begin : begin + request.layout.rows], array):
                    raise WrongRows(f"output '{name}' of a request depends on the others of its batch")
        self._unproven -= {"equal"} if kind == "equal" else {"equal", "different"}


def agree(joined: Array, alone: Array) -> bool:
    """Return whether two outputs are the same but for rounding."""
    if joined.shape != alone.shape:
        return False
    if alone.dtype.kind != "f":
        return bool(np.array_equal(joined, alone))
    largest = np.max(np.abs(alone[np.isfinite(alone)]), initial=0)
    return bool(np.allclose(joined, alone, rtol=0, atol=TOLERANCE * float(largest), equal_nan=True))
