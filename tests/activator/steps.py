"""An event loop whose time a test moves, one callback round at a time: state machines act between the rounds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from serve.core.clock import NS_PER_S

T = TypeVar("T")


class StepLoop(asyncio.SelectorEventLoop):
    """Never sleeps. `after_round` is called whenever callbacks have run."""

    def __init__(self, after_round: Callable[[], None]) -> None:
        super().__init__()
        self.now_ns = 1000 * NS_PER_S
        self._after_round = after_round

    def time(self) -> float:
        return self.now_ns / NS_PER_S

    # A Clock

    def monotonic_ns(self) -> int:
        return self.now_ns

    def wall_ns(self) -> int:
        return self.now_ns + 1_700_000_000 * NS_PER_S

    def act(self, action: Callable[[], T]) -> T:
        """Run `action` as a callback of the loop."""

        async def acting() -> T:
            return action()

        result = self.run_until_complete(acting())
        self._after_round()
        return result

    def settle(self) -> None:
        """Run until nothing is left to do at this instant."""
        for _ in range(100):
            if not self._ready_now():
                return
            self._round()
        raise AssertionError("the loop does not come to rest")

    def advance(self, duration_ns: int) -> None:
        """Let time pass, stopping at each timer."""
        end_ns = self.now_ns + duration_ns
        self.settle()
        while (next_ns := self._next_timer_ns()) is not None and next_ns <= end_ns:
            self.now_ns = max(self.now_ns, next_ns)
            self._round()
            self.settle()
        self.now_ns = end_ns

    def _round(self) -> None:
        self.call_soon(self.stop)
        self.run_forever()
        self._after_round()

    def _ready_now(self) -> bool:
        ready: Any = self._ready  # type: ignore[attr-defined]
        next_ns = self._next_timer_ns()
        return bool(ready) or (next_ns is not None and next_ns <= self.now_ns)

    def _next_timer_ns(self) -> int | None:
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        live = [timer.when() for timer in timers if not timer.cancelled()]
        return -int(-min(live) * NS_PER_S // 1) if live else None
