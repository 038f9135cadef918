"""A call: one inference request between its head being read and its last byte leaving."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

from serve.core.errors import ServeError
from serve.core.frames import ResponseHead, Usage
from serve.core.ids import ReplicaId, RequestId, RevisionKey


class Reply(NamedTuple):
    """An answer that a replica gave, already in the journal."""

    head: ResponseHead
    body: memoryview
    usage: Usage
    replica: ReplicaId
    cost_nano: int
    currency: str


class Call:
    """Moves pending → dispatched → answered | refused | left, once. Owned by the event loop; changed by its gate.

    A subclass's `ended` hears the end exactly once. What a caller leaves behind is finished by the gate: nobody
    waits for it.
    """

    __slots__ = (
        "body",
        "client_id",
        "codec",
        "deadline_ns",
        "dispatched_ns",
        "is_cold",
        "is_done",
        "is_left",
        "is_probe",
        "json_length",
        "key",
        "on_leave",
        "phases",
        "received_ns",
        "refusal",
        "request_id",
        "strikes",
        "trace_id",
        "tries",
        "wait_until_ns",
    )

    def __init__(
        self,
        request_id: RequestId,
        key: RevisionKey,
        body: bytes,
        codec: int,
        json_length: int,
        received_ns: int,
        deadline_ns: int,
        wait_until_ns: int,
    ) -> None:
        self.request_id = request_id
        self.key = key
        self.body = body
        """Kept until the answer: a replica that dies loses nothing."""
        self.codec = codec
        self.json_length = json_length
        self.received_ns = received_ns
        self.deadline_ns = deadline_ns
        """When the caller gets an error at the latest."""
        self.wait_until_ns = wait_until_ns
        """How long it may wait for a replica: the deadline, or earlier where the caller said `Prefer: wait`."""
        self.dispatched_ns = 0
        self.tries = 0
        """Replicas that died with this call inside."""
        self.strikes = 0
        """Those of them that may have died of it."""
        self.is_cold = False
        """No replica was ready when it came."""
        self.is_probe = False
        """An inference of the platform's own: recorded, never charged."""
        self.is_left = False
        """The caller is gone or was told no; whatever still comes is dropped, but accounted."""
        self.is_done = False
        self.refusal: ServeError | None = None
        """What the platform itself told the caller."""
        self.on_leave: Callable[[Call], None] | None = None
        self.client_id = ""
        self.trace_id = ""
        self.phases: dict[str, int] = {}
        """Where the time of a cold call went, ns by phase; filled when it is answered."""

    def inside_until_ns(self, execution_timeout_ns: int) -> int:
        """Return when a call that was dispatched is refused, if no answer came."""
        return min(self.deadline_ns, self.dispatched_ns + execution_timeout_ns)

    def leave(self) -> None:
        """The caller went away: free the slot and the work."""
        if not self.is_left and not self.is_done and self.on_leave is not None:
            self.on_leave(self)

    def refuse(self, error: ServeError) -> None:
        """Answer with an error, unless it was answered already."""
        self.is_left = True
        self.refusal = error
        self.finish(error)

    def finish(self, outcome: Outcome) -> None:
        """Tell the caller how it ended; only the first outcome counts."""
        if not self.is_done:
            self.is_done = True
            self.ended(outcome)

    def ended(self, outcome: Outcome) -> None:
        """Take the end: a `Reply`, a `ServeError`, or None where the caller left."""
        raise NotImplementedError


Outcome = Reply | ServeError | None


class ClientLeft(Exception):
    """The client closed its connection before the answer; there is nobody to tell."""


class AwaitedCall(Call):
    """A call whose end a coroutine waits for. The call goes on without it if the coroutine is cancelled."""

    __slots__ = ("_end",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._end: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def ended(self, outcome: Outcome) -> None:
        if not self._end.done():
            self._end.set_result(outcome)

    async def reply(self) -> Reply:
        """Return the reply. Raise ServeError, or ClientLeft."""
        try:
            outcome = await self._end
        except asyncio.CancelledError:
            self.leave()
            raise
        if outcome is None:
            raise ClientLeft
        if isinstance(outcome, ServeError):
            raise outcome
        return outcome
