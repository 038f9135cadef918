"""Questions about money, answered from the ledger after it took in everything written so far."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from billing.prices import PriceBook
from billing.reconcile import as_json, reconcile
from billing.report import Report, report, request
from billing.schema import LedgerError, LedgerUnreadable
from billing.verify import verify
from serve.core.errors import BadRequest, ServeError

T = TypeVar("T")


class Sync(Protocol):
    def __call__(self, *, rebuild: bool = False) -> Awaitable[None]:
        """Return when the ledger's process has read the journal to its end, `rebuild`: from its beginning.

        Raise OSError or TimeoutError.
        """


class LedgerBooks:
    """Implements `ports.Books`. Reads in threads: a report over a long time takes a while.

    `write_state` puts what is known only in memory, such as open lives, into the journal: answers are of now.
    """

    def __init__(
        self,
        sync: Sync,
        ledger: Path,
        journal: Path,
        prices: Callable[[], PriceBook],
        write_state: Callable[[], None] = lambda: None,
    ) -> None:
        self._sync = sync
        self._ledger = ledger
        self._journal = journal
        self._prices = prices
        self._write_state = write_state

    async def bill(self, by: str, since_ns: int | None, until_ns: int | None) -> dict[str, Any]:
        return (await self._report(by, since_ns, until_ns)).as_json()

    async def bill_csv(self, by: str, since_ns: int | None, until_ns: int | None) -> str:
        return (await self._report(by, since_ns, until_ns)).as_csv()

    async def verify(self, *, kernel: bool = False) -> dict[str, Any]:
        def check() -> dict[str, Any]:
            proof = verify(self._ledger, self._journal).as_json()
            return proof | {"kernel": as_json(reconcile(self._ledger))} if kernel else proof

        return await self._read(check)

    async def request(self, request_id: str) -> dict[str, Any] | None:
        return await self._read(lambda: request(self._ledger, request_id))

    async def _report(self, by: str, since_ns: int | None, until_ns: int | None) -> Report:
        return await self._read(lambda: report(self._ledger, by, since_ns, until_ns, self._prices()))

    async def catch_up(self) -> None:
        """Return when the ledger has everything until now, open lives included. Raise ServeError."""
        self._write_state()
        await self._synced()

    async def _read(self, read: Callable[[], T]) -> T:
        try:
            await self.catch_up()
            try:
                return await asyncio.to_thread(read)
            except LedgerUnreadable:
                # Damaged where the ledger's process had not looked.
                await self._synced(rebuild=True)
                return await asyncio.to_thread(read)
        except LedgerError as error:
            raise ServeError(str(error)) from error
        except ValueError as error:
            raise BadRequest(str(error)) from error

    async def _synced(self, *, rebuild: bool = False) -> None:
        try:
            await self._sync(rebuild=rebuild)
        except (OSError, TimeoutError) as error:
            raise ServeError(f"the ledger did not answer ({error}); it is started again: ask once more") from error
