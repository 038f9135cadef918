"""Progress of a deploy on stderr: a moving line on a terminal, one line a step elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

from serve.cli.output import note, size

if TYPE_CHECKING:
    from rich.status import Status


class Progress:
    """Shows steps as they come. Owned by one command."""

    def __init__(self) -> None:
        self._last = ""
        self._status: Status | None = None

    def __enter__(self) -> Self:
        if sys.stderr is not None and sys.stderr.isatty():
            from rich.console import Console
            from rich.status import Status

            self._status = Status("deploy", console=Console(stderr=True))
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def step(self, step: str, message: str, done_bytes: int | None = None, total_bytes: int | None = None) -> None:
        """Show `message`, or the step's name. Byte counts move the line; they never make a new one."""
        text = message or step
        if text != self._last:
            self._last = text
            if self._status is None:
                note(text + (f" ({size(total_bytes)})" if total_bytes else ""))
        if self._status is not None:
            from rich.text import Text

            of_bytes = f" {size(done_bytes)} of {size(total_bytes)}" if total_bytes and done_bytes is not None else ""
            self._status.update(Text(text + of_bytes))
