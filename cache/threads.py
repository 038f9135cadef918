"""Blocking file work away from the event loop, without leaving it unattended when a caller gives up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Args = TypeVarTuple("Args")


async def in_thread(function: Callable[[Unpack[Args]], T], *args: *Args, abort: Callable[[], None] | None = None) -> T:
    """Return `function(*args)`, run in a thread.

    A caller that is cancelled still waits for the thread, then is cancelled: what it does next (remove the file, give
    the space back) must not overlap with the work. `abort` makes work end early that could otherwise wait for long.
    """
    call = asyncio.get_running_loop().run_in_executor(None, function, *args)
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        if abort is not None:
            abort()
        while not call.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([call])
        raise
