"""Which waiting requests share the next run. Natural batching: nothing ever waits for company (pure).

While the engine is busy requests gather; when it is free, all that fit go together. Rows are counted, not requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from runtime.plans import Layout


class Joinable(Protocol):
    """What the choice depends on."""

    @property
    def layout(self) -> Layout: ...


J = TypeVar("J", bound=Joinable)


def take_batch(waiting: Sequence[J], max_rows: int) -> tuple[list[J], list[J]]:
    """Return the next batch and what still waits, both in order of arrival. `waiting` is not empty.

    The oldest request always goes. Later ones of its signature join while the rows fit; the first that does not fit
    ends it, so that none is overtaken by its like. One with more rows than `max_rows` runs alone.
    """
    first = waiting[0]
    signature, rows = first.layout.signature, first.layout.rows
    batch, rest = [first], []
    is_open = signature is not None
    for position in range(1, len(waiting)):
        request = waiting[position]
        if is_open and request.layout.signature == signature:
            if rows + request.layout.rows <= max_rows:
                batch.append(request)
                rows += request.layout.rows
                continue
            is_open = False
        rest.append(request)
    return batch, rest
