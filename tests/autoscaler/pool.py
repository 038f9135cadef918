"""The activator's router as the autoscaler's stories see it: real gates, calls that note how they ended."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from activator.accounts import Accounts
from activator.calls import Call, Outcome, Reply
from activator.connection import ReplicaConnection
from activator.gate import Gate
from activator.router import Router
from billing.journal import Journal
from billing.prices import PriceBook, Prices
from serve.core.clock import NS_PER_S, Clock
from serve.core.errors import ServeError
from serve.core.frames import NO_JSON_LENGTH, Codec
from serve.core.ids import RequestIds, RevisionKey, new_writer_id
from serve.core.metrics import Metrics
from serve.core.scaling import Demand, Exited

CHECKPOINT_S = 1e9
"""Books are not what these stories are about: no timer of theirs."""


class Request(Call):
    """A call whose body says how long it takes."""

    def __init__(self, ids: RequestIds, key: RevisionKey, duration_s: float, now_ns: int, timeout_s: float) -> None:
        deadline_ns = now_ns + round(timeout_s * NS_PER_S)
        super().__init__(
            ids.next(), key, str(duration_s).encode(), Codec.OIP, NO_JSON_LENGTH, now_ns, deadline_ns, deadline_ns
        )
        self.asked_ns = now_ns
        self.answered_ns = 0
        self.replica = ""
        self.error: ServeError | None = None
        self.ends = 0

    def ended(self, outcome: Outcome) -> None:
        self.ends += 1
        if isinstance(outcome, ServeError):
            self.error = outcome
        elif isinstance(outcome, Reply):
            self.answered_ns, self.replica = outcome.usage.left_ns, outcome.replica


class Pool(Router):
    """The real router, watched."""

    def __init__(self, clock: Clock, metrics: Metrics, folder: Path) -> None:
        writer = new_writer_id()
        self._journal = Journal(folder / "journal", writer, clock)
        book = PriceBook([Prices(0, "USD", 24_000, 2_500, 0)])
        self.accounts = Accounts(self._journal, book, clock, metrics, CHECKPOINT_S)
        self.request_ids = RequestIds(writer)
        super().__init__(self.request_ids, clock, self.accounts, metrics)
        self.gone: list[Exited] = []
        self.readings = 0
        self._asked: defaultdict[RevisionKey, list[Request]] = defaultdict(list)

    @property
    def gates(self) -> dict[RevisionKey, Gate]:
        return self._gates

    @property
    def replicas(self) -> dict[str, ReplicaConnection]:
        return {replica_id: replica for replica_id, (_, replica) in self._replicas.items()}

    def ask(
        self, key: RevisionKey, duration_s: float, count: int = 1, *, timeout_s: float = 1e6, wait_s: float = 1e6
    ) -> list[Request]:
        """Let requests arrive now. `wait_s`: how long each would wait for a replica."""
        requests = []
        gate = self._gates[key]
        for _ in range(count):
            request = Request(self.request_ids, key, duration_s, self._clock.monotonic_ns(), timeout_s)
            request.wait_until_ns = min(request.deadline_ns, request.asked_ns + round(wait_s * NS_PER_S))
            requests.append(request)
            self._asked[key].append(request)
            assert gate.room.try_reserve(len(request.body))
            try:
                gate.submit(request)
            except ServeError as error:
                gate.room.release(len(request.body))
                request.refuse(error)
        return requests

    def give_up(self, key: RevisionKey) -> None:
        """Callers of everything that waits leave."""
        for request in self._asked[key]:
            if request in self._gates[key]._line:
                request.leave()

    def open_replicas(self, key: RevisionKey) -> list[str]:
        return [name for name, replica in self.replicas.items() if replica.info.key == key and replica.is_open]

    def demand(self, key: RevisionKey, now_ns: int) -> Demand:
        self.readings += 1
        return super().demand(key, now_ns)

    def replica_gone(self, exited: Exited) -> None:
        self.gone.append(exited)
        super().replica_gone(exited)

    def close(self) -> None:
        self.accounts.close()
