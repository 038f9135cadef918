"""For every test."""

from __future__ import annotations

import asyncio


def pytest_configure() -> None:
    """Have no event loop but those of tests.

    Where a plain test comes before an asynchronous one, pytest-asyncio asks for the current loop; Python 3.11 then
    makes one that nobody closes, and the warning fails the run.
    """
    asyncio.set_event_loop(None)
