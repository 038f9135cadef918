"""Lifecycle: owns the tasks of a process. One that dies ends the process loudly; all end together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

log = logging.getLogger(__name__)


class Lifecycle:
    """A task group with names. Owned by the loop that enters it.

    `spawn` is the only way tasks are made in this code base. A task that raises cancels its siblings and the error
    leaves the `async with` block in an exception group; an error of the block itself leaves it as it is. `stop` cancels
    what still runs without an error.
    """

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_stopped = False

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.stop()
        try:
            await self._group.__aexit__(kind, error, traceback)
        except BaseExceptionGroup as group:
            if group.exceptions != (error,):
                raise

    def spawn(self, name: str, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run `coroutine` as a task that lives as long as this lifecycle at most."""
        task = self._group.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        if self._is_stopped:
            task.cancel()
        return task

    def stop(self) -> None:
        """Cancel every task that still runs, and any that is spawned later; leaving the block waits for them."""
        self._is_stopped = True
        for task in self._tasks:
            task.cancel()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("task %s died: the process ends", task.get_name(), exc_info=error)
