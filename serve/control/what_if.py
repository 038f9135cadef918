"""`serve explain NAME --what-if`: what other settings would have cost. Simulated in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from billing.prices import PriceBook
from serve.core.errors import BadRequest, Conflict, InvalidSpec, ServeError, TooLarge
from serve.core.revision import Revision
from serve.core.spec import DeploymentSpec
from serve.core.spec_errors import sentence

KEYS = ("idle", "min", "max", "concurrency", "target", "queue", "timeout", "stable_window", "panic_window")
"""Settings whose effect follows from recorded arrivals and service times. The others change what a run or start takes,
or matter only where something goes wrong."""
_UNSET = frozenset({"unset", "none", "null"})
DEADLINE_S = 45
_LAST_S = 5.0
"""For the process to end after its own deadline."""


def changed_spec(now: DeploymentSpec, text: str) -> DeploymentSpec:
    """Return the settings with `idle=10s,max=4` applied. Raise BadRequest, InvalidSpec."""
    changes: dict[str, str | None] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        key, equals, value = (word.strip() for word in part.partition("="))
        key = key.replace("-", "_")
        if not equals or not value:
            raise BadRequest(f"'{part}' changes nothing: write {_example()}")
        if key not in KEYS:
            why = "cannot be simulated" if key in DeploymentSpec.model_fields else "is not a setting"
            raise BadRequest(f"'{key}' {why}: --what-if takes {', '.join(KEYS)}")
        if key in changes:
            raise BadRequest(f"'{key}' is given twice: give it once")
        changes[key] = None if value.lower() in _UNSET else value
    if not changes:
        raise BadRequest(f"nothing is changed: write {_example()}")
    try:
        return DeploymentSpec.model_validate(now.model_dump() | changes)
    except ValidationError as error:
        raise InvalidSpec(sentence(error)) from None


def _example() -> str:
    return "--what-if idle=10s,max=4"


class WhatIf:
    """Implements `ports.Forecaster`. One question at a time. Owned by the event loop.

    `catch_up` returns when the ledger has all that was written until now.
    """

    def __init__(
        self,
        catch_up: Callable[[], Awaitable[None]],
        ledger: Path,
        prices: Callable[[], PriceBook],
        memory_budget_bytes: int,
        cores: int,
    ) -> None:
        self._catch_up = catch_up
        self._ledger = ledger
        self._prices = prices
        self._memory_budget_bytes = memory_budget_bytes
        self._cores = cores
        self._busy = asyncio.Lock()

    async def forecast(
        self, revision: Revision, changed: DeploymentSpec, since_ns: int | None, until_ns: int | None
    ) -> dict[str, Any]:
        if self._busy.locked():
            raise Conflict("another what-if is being simulated: ask again when it is done")
        async with self._busy:
            await self._catch_up()
            return await self._ask(self._order(revision, changed, since_ns, until_ns))

    def _order(
        self, revision: Revision, changed: DeploymentSpec, since_ns: int | None, until_ns: int | None
    ) -> dict[str, Any]:
        return {
            "ledger": str(self._ledger),
            "name": revision.key.name,
            "revision": revision.key.number,
            "now": revision.spec.model_dump(mode="json"),
            "changed": changed.model_dump(mode="json"),
            "threads": revision.threads,
            "is_batchable": revision.signature is not None and revision.signature.batchable,
            "since_ns": since_ns,
            "until_ns": until_ns,
            "prices": [entry.as_record() for entry in self._prices().entries],
            "memory_budget_bytes": self._memory_budget_bytes,
            "cores": self._cores,
            "deadline_s": DEADLINE_S,
        }

    async def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        process = await asyncio.create_subprocess_exec(sys.executable, "-P", "-m", "simulator", stdin=PIPE, stdout=PIPE)
        try:
            async with asyncio.timeout(DEADLINE_S + _LAST_S):
                out, _ = await process.communicate(json.dumps(order).encode())
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode == -signal.SIGALRM:
            raise TooLarge(f"the simulation takes longer than {DEADLINE_S} s: ask about less with --since")
        if process.returncode:
            raise ServeError("the simulation failed: the platform's log tells more")
        answer: dict[str, Any] = orjson.loads(out)
        if "error" in answer:
            raise BadRequest(answer["error"])
        return answer
