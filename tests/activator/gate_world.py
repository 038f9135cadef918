"""A real gate with real books, replicas on paper and calls that are followed: what the state machine acts on."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from activator.accounts import Accounts
from activator.calls import Call, Outcome, Reply
from activator.connection import ReplicaConnection
from activator.gate import Gate
from activator.router import Router
from billing.journal import Journal, JournalError, Problem, journal_files, read_journal_file
from billing.prices import PriceBook, Prices
from serve.core.clock import NS_PER_MS, NS_PER_S
from serve.core.errors import ServeError
from serve.core.events import Event, ExitReason, Ready
from serve.core.frames import Frame
from serve.core.ids import ReplicaId, RequestIds, RevisionKey
from serve.core.metrics import Metrics
from serve.core.revision import Revision
from serve.core.scaling import Exited, ReplicaInfo
from serve.core.spec import DeploymentSpec
from simulator.paper import Inside, PaperReplica
from tests.activator.steps import StepLoop

KEY = RevisionKey("m", 1)
CONCURRENCY, QUEUE, QUEUE_BYTES = 2, 5, 500
TIMEOUT_NS, EXECUTION_TIMEOUT_NS = 10 * NS_PER_S, 3 * NS_PER_S
LATE_NS = 5 * NS_PER_MS
"""What deadlines may be late: the timer's resolution and the pause between two looks."""
HELD_LATE_NS = NS_PER_S + LATE_NS
"""The writer looks once a second at answers that the disk holds back."""
POISON = b"!"


class FollowedCall(Call):
    """A call that notes where it was."""

    def __init__(self, request_id: Any, body: bytes, now_ns: int, timeout_ns: int, wait_ns: int) -> None:
        deadline_ns = now_ns + timeout_ns
        wait_until_ns = min(deadline_ns, now_ns + wait_ns)
        super().__init__(request_id, KEY, body, 1, -1, now_ns, deadline_ns, wait_until_ns)
        self.ends = 0
        self.outcome: Outcome = None
        self.last_place = ""
        """In the line, or inside a replica: where the gate had it last."""
        self.came_ns = now_ns
        self.gone_ns: int | None = None
        """When it was in no line and no replica any more."""

    @property
    def is_poison(self) -> bool:
        return self.body.startswith(POISON)

    def ended(self, outcome: Outcome) -> None:
        self.ends += 1
        self.outcome = outcome


class RefusingJournal(Journal):
    """A journal on a disk that refuses when told to."""

    refuses = False

    def flush(self) -> None:
        if self.refuses:
            raise JournalError("the billing journal cannot be written (No space left on device)")
        super().flush()


class Listener:
    """Notes what the gate tells the autoscaler; a poke may be answered at once, as an autoscaler in back-off does."""

    def __init__(self) -> None:
        self.pokes = 0
        self.empty: set[ReplicaId] = set()
        self.overdue: list[ReplicaId] = []
        self.on_poke: Any = None

    def poke(self, key: RevisionKey) -> None:
        assert key == KEY
        self.pokes += 1
        if self.on_poke is not None:
            self.on_poke()

    def replica_empty(self, replica_id: ReplicaId) -> None:
        self.empty.add(replica_id)

    def replica_event(self, replica_id: ReplicaId, event: Event) -> None: ...

    def replica_overdue(self, replica_id: ReplicaId, sentence: str) -> None:
        assert replica_id not in self.overdue, "reported twice"
        self.overdue.append(replica_id)

    def replica_link_lost(self, replica_id: ReplicaId) -> None: ...


class Nobody:
    def frames_received(self, frames: list[Frame]) -> None:
        raise AssertionError("the activator did not take the link over")

    def link_lost(self, reason: str) -> None:
        raise AssertionError("the activator did not take the link over")


@dataclass
class Played:
    """A replica and what the driver knows of it."""

    info: ReplicaInfo
    paper: PaperReplica
    connection: ReplicaConnection
    is_ready: bool = False
    is_retired: bool = False


class GateWorld:
    def __init__(self, engine: str) -> None:
        self.loop = StepLoop(self.look)
        self._folder = tempfile.TemporaryDirectory()
        self.calls: list[FollowedCall] = []
        self.replicas: list[Played] = []
        self.exits: dict[str, tuple[int, int]] = {}
        self.engine = engine
        self._numbers = 0
        self.sent: Counter[str] = Counter()
        """How often each request was sent to a replica."""
        self._is_built = False
        self.loop.act(self._build)

    def _build(self) -> None:
        self.journal = RefusingJournal(Path(self._folder.name), "writer01", self.loop)
        book = PriceBook([Prices(0, "USD", 24_000, 2_500, 0)])
        self.accounts = Accounts(self.journal, book, self.loop, Metrics(), 5.0)
        self.ids = RequestIds("writer01")
        self.listener = Listener()
        self.router = Router(self.ids, self.loop, self.accounts, self.accounts.metrics)
        self.router.listener = self.listener
        spec = DeploymentSpec(
            name="m",
            concurrency=CONCURRENCY,
            queue=QUEUE,
            queue_bytes=QUEUE_BYTES,
            timeout=TIMEOUT_NS / NS_PER_S,
            execution_timeout=EXECUTION_TIMEOUT_NS / NS_PER_S,
            engine=self.engine,
        )
        self.router.add_revision(Revision(KEY, spec, "d", "/nowhere", "model.onnx", 1, 1 << 20, None))
        self.gate: Gate = self.router._gates[KEY]
        self._is_built = True

    # What the machine does -------------------------------------------------------------------------------------------

    def submit(self, body: bytes, timeout_ns: int, wait_ns: int) -> ServeError | None:
        """Return the error if the call was turned away."""
        if not self.gate.room.try_reserve(len(body)):
            return None  # doors wait for room, or read no further
        call = FollowedCall(self.ids.next(), body, self.loop.now_ns, timeout_ns, wait_ns)
        self.calls.append(call)
        try:
            self.gate.submit(call)
        except ServeError as error:
            self.calls.remove(call)
            self.gate.room.release(len(body))
            assert not call.ends
            return error
        return None

    def assign(self) -> Played:
        self._numbers += 1
        replica_id = ReplicaId(f"m-r1-{self._numbers:08}")
        info = ReplicaInfo(replica_id, KEY, 1, 1, 1 << 20, self.loop.now_ns, self.loop.wall_ns())
        self.router.replica_assigned(info)
        played = Played(
            info, PaperReplica(self.loop, self._sent, hears_cancel=False), self.router._replicas[replica_id][1]
        )
        self.replicas.append(played)
        return played

    def ready(self, played: Played) -> None:
        played.is_ready = True
        link = played.paper.connect(Nobody())
        ready = Ready(self.loop.now_ns, "onnx", "1", (), (), True, 1, 1)
        self.router.replica_ready(played.info.id, link, ready, {})

    def _sent(self, inside: Inside) -> None:
        self.sent[inside.head.request_id] += 1

    def retire(self, played: Played) -> None:
        played.is_retired = True
        self.router.replica_retired(played.info.id)

    def gone(self, played: Played, reason: ExitReason, signal: int | None) -> None:
        """The process is gone: what it said last is read, then its link is closed, as drivers do."""
        if played.is_ready:
            played.paper.link.read_rest()
            played.paper.link.close()
        self.replicas.remove(played)
        self.exits[played.info.id] = (played.info.assigned_ns, self.loop.now_ns)
        self.router.replica_gone(Exited(played.info.id, reason, self.loop.now_ns, None, signal, "it died"))

    def refuse_at_next_poke(self, error: ServeError) -> None:
        """As an autoscaler does for a model that failed: in the middle of `submit`, and of `replica_gone`."""

        def refuse() -> None:
            self.listener.on_poke = None
            self.router.fail_pending(KEY, error)

        self.listener.on_poke = refuse

    # What is looked at after each round ------------------------------------------------------------------------------

    def place_of(self, call: FollowedCall) -> str:
        places = ["line"] * (call in self.gate._line.fresh) + ["line"] * (call in self.gate._line.suspects)
        for connection in self.gate.connections.values():
            places += ["inside"] * sum(inside is call for inside in connection.outstanding.values())
        if not call.is_done:
            places += ["held"] * sum(held is call for held, _ in self.accounts.writer._held)
        assert len(places) <= 1, f"{call.request_id} is in {places}"
        return places[0] if places else "nowhere"

    def look(self) -> None:
        if not self._is_built:
            return
        for call in self.calls:
            place = self.place_of(call)
            if place in {"line", "inside"}:
                call.last_place = place
            if call.gone_ns is None and (call.is_left or place not in {"line", "inside"}):
                call.gone_ns = self.loop.now_ns

    def reply_of(self, call: FollowedCall) -> Reply | None:
        return call.outcome if isinstance(call.outcome, Reply) else None

    def records(self, kind: str) -> list[dict[str, Any]]:
        found = []
        for _, _, path in journal_files(Path(self._folder.name)):
            for record, _ in read_journal_file(path):
                assert not isinstance(record, Problem)
                if record["kind"] == kind:
                    found.append(record)
        return found

    def close(self) -> None:
        self.loop.act(self.accounts.close)
        self.loop.settle()
        self._folder.cleanup()
        self.loop.close()
