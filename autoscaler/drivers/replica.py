"""What every driver knows of its replicas: from the link's first event to the sentence that says how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from autoscaler.drivers.base import DriverError, ReplicaObserver
from autoscaler.drivers.log import ReplicaLog
from autoscaler.drivers.oom import OomKills
from autoscaler.drivers.processes import ExitStatus, Process
from serve.core.clock import Clock
from serve.core.events import Drained, Event, EventError, ExitReason, Failed, LoadOrder, decode_event
from serve.core.frames import Frame, Kind, pack
from serve.core.ids import ReplicaId
from serve.core.link import FrameLink, Link
from serve.core.scaling import Exited

log = logging.getLogger(__name__)

START_S = 30.0
"""Longest time until a process runs and has its order; loading is not part of it."""
LAST_FRAMES_S = 1.0
"""Longest wait for the end of a dead replica's socket: something else may hold it open."""


class ReplicaLife:
    """One replica that a driver starts. Receives the link's frames until the activator takes them over.

    Owned by the loop. Events and the exit reach the observer only after `begin`, that is after `start` returned.
    """

    def __init__(self, order: LoadOrder, observer: ReplicaObserver, log_file: ReplicaLog, replicas: Replicas) -> None:
        self.id = ReplicaId(order.replica_id)
        self._observer = observer
        self.log = log_file
        self._replicas = replicas
        self._loop = asyncio.get_running_loop()
        self._early: list[Event] | None = []
        self._link: Link | None = None
        self._link_lost = False
        self._process: Process | None = None
        self._status: ExitStatus | None = None
        self._kill_reason: ExitReason | None = None
        self._is_draining = False
        self._oom_kills_before = replicas.oom_kills.so_far()
        self._failed: Failed | None = None
        self.over: asyncio.Future[None] = self._loop.create_future()
        """Resolves after the observer heard of the exit."""

    def begin(self, process: Process, link: Link) -> None:
        """The process runs and has been told what to load: from now on the observer hears of it."""
        self._process, self._link = process, link
        if self._replicas.is_closed:
            self.kill(ExitReason.STOPPED)
        elif self._kill_reason is not None:
            process.kill()
        self._loop.call_soon(self._deliver_early)
        process.exited.add_done_callback(self._process_ended)

    @property
    def has_begun(self) -> bool:
        return self._process is not None

    def drain(self) -> None:
        self._is_draining = True
        if self._link is not None:
            self._link.send(pack(Kind.DRAIN))

    def kill(self, reason: ExitReason) -> None:
        if self._process is not None and self._process.is_over:
            return
        self._kill_reason = self._kill_reason or reason
        if self._process is not None:
            self._process.kill()

    # FrameReceiver

    def frames_received(self, frames: list[Frame]) -> None:
        for frame in frames:
            if frame.kind != Kind.EVENT:
                log.error("frame from a replica that nobody asked", extra={"replica": self.id, "kind": frame.kind})
                continue
            try:
                self._event(decode_event(frame.payload))
            except EventError as error:
                log.error("replica sent an event that is none", extra={"replica": self.id, "error": str(error)})
                self.kill(ExitReason.CRASHED)

    def link_lost(self, reason: str) -> None:
        log.debug("link of a replica ended", extra={"replica": self.id, "why": reason})
        self._link_lost = True
        if self._status is not None:
            self._finish()

    def _event(self, event: Event) -> None:
        if isinstance(event, Failed):
            self._failed = event
        elif isinstance(event, Drained):
            self._is_draining = True
        if self._early is not None:
            self._early.append(event)
        else:
            self._observer.replica_event(self.id, event)

    def _deliver_early(self) -> None:
        early, self._early = self._early, None
        for event in early or ():
            self._observer.replica_event(self.id, event)

    def _process_ended(self, exited: asyncio.Future[ExitStatus]) -> None:
        self._status = exited.result()
        assert self._link is not None
        # Its last frames, such as why it could not load, or answers, may still be unread.
        self._link.read_rest()
        if self._link_lost or self._link.receiver is not self:
            self._finish()
        else:
            self._loop.call_later(LAST_FRAMES_S, self._finish)

    def _finish(self) -> None:
        if self.over.done():
            return
        assert self._status is not None
        assert self._link is not None
        self.over.set_result(None)
        self._link.close()
        reason = self._reason(self._status)
        message = self._message(reason, self._status)
        self._replicas.forget(self.id)
        now_ns = self._replicas.clock.monotonic_ns()
        status = self._status
        self._observer.replica_exited(
            Exited(self.id, reason, now_ns, status.code, status.signal, message, status.cpu_us, status.peak_rss_bytes)
        )

    def _reason(self, status: ExitStatus) -> ExitReason:
        if self._kill_reason is not None:
            return self._kill_reason
        if self._failed is not None:
            return ExitReason.LOAD_FAILED
        if status.code == 0:
            # Without an order: its socket was closed, which is how the platform lets go of a replica, or SIGTERM.
            return ExitReason.DRAINED if self._is_draining else ExitReason.STOPPED
        if status.signal == signal.SIGKILL and self._replicas.oom_kills.take(self._oom_kills_before):
            return ExitReason.OUT_OF_MEMORY
        return ExitReason.CRASHED

    def _message(self, reason: ExitReason, status: ExitStatus) -> str:
        if reason is ExitReason.DRAINED:
            return f"{self.id} finished its work and exited"
        if reason is ExitReason.LOAD_FAILED and self._failed is not None:
            return self._failed.message
        if reason is ExitReason.STOPPED and status.code == 0:
            return f"{self.id} exited by itself: its connection was closed, or somebody told it to finish"
        if reason is ExitReason.OUT_OF_MEMORY:
            return f"{self.id} was killed by the kernel because memory ran out: lower max_batch or give it more memory"
        if self._kill_reason is not None and reason is not ExitReason.CRASHED:
            return f"{self.id} was killed by the platform ({reason.value})"
        words = self.log.last_words()
        return f"{self.id} {_how(status)}" + (f"; its last words: {words}" if words else "")


class Replicas:
    """The replicas of one driver. Owned by the loop."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.oom_kills = OomKills()
        self._lives: dict[ReplicaId, ReplicaLife] = {}
        self.is_closed = False

    @contextlib.asynccontextmanager
    async def starting(
        self, order: LoadOrder, observer: ReplicaObserver, log_file: Path
    ) -> AsyncIterator[tuple[ReplicaLife, contextlib.ExitStack]]:
        """Give a life, to begin within this block, and a stack of what must be undone if it does not.

        Left by an error, the life never was. Takes START_S seconds at most. Raise DriverError.
        """
        if self.is_closed:
            raise DriverError("the driver is closed: the platform is shutting down")
        if order.replica_id in self._lives:
            raise DriverError(f"{order.replica_id} runs already: replica ids are used once")
        life = ReplicaLife(order, observer, ReplicaLog(log_file), self)
        self._lives[life.id] = life
        try:
            async with asyncio.timeout(START_S):
                with contextlib.ExitStack() as undo:
                    yield life, undo
        except TimeoutError:
            raise DriverError(f"{life.id} did not start within {START_S:.0f} s: is the machine overloaded?") from None
        except OSError as error:
            raise DriverError(f"{life.id} could not be started: {error.strerror}") from error
        finally:
            life.log.close()
            if not life.has_begun:
                self.forget(life.id)

    def forget(self, replica_id: ReplicaId) -> None:
        self._lives.pop(replica_id, None)

    def drain(self, replica_id: ReplicaId) -> None:
        if (life := self._lives.get(replica_id)) is not None:
            life.drain()

    def kill(self, replica_id: ReplicaId, reason: ExitReason) -> None:
        if (life := self._lives.get(replica_id)) is not None:
            life.kill(reason)

    async def close(self) -> None:
        """Kill every replica; return when all are reaped and their observers know."""
        self.is_closed = True
        lives = [life for life in self._lives.values() if life.has_begun]
        for life in lives:
            life.kill(ExitReason.STOPPED)
        for life in lives:
            await life.over


async def open_link(sock: socket.socket, life: ReplicaLife) -> FrameLink:
    """Return the link over a connected socket; cancelled or failing, close the socket."""
    try:
        return await FrameLink.open(sock, life)
    except BaseException:
        sock.close()
        raise


def _how(status: ExitStatus) -> str:
    if status.signal is not None:
        try:
            name = signal.Signals(status.signal).name
        except ValueError:
            name = str(status.signal)
        return f"was ended by signal {name}"
    if status.code is not None:
        return f"ended by itself with exit status {status.code}"
    return "ended, nobody knows how"
