"""The local driver: replicas forked from a zygote, each at the other end of a socketpair."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from autoscaler.drivers.base import ReplicaObserver, StartedReplica
from autoscaler.drivers.processes import become_subreaper
from autoscaler.drivers.replica import Replicas, open_link
from autoscaler.drivers.sweep import sweep
from autoscaler.drivers.zygote import Fork, Zygote
from serve.core.clock import Clock, SystemClock
from serve.core.events import ExitReason, LoadOrder, encode_load
from serve.core.frames import Kind, pack
from serve.core.ids import ReplicaId


class LocalDriver:
    """Starts replicas by fork. Owned by the loop, which must run in the main thread.

    The socket holds the order to load before the replica exists: nothing is awaited one after the other that need not
    be, and a replica reads its order from its socket under every driver.
    """

    def __init__(self, home: Path, *, flavour: str = "onnx", clock: Clock | None = None) -> None:
        self._home = home
        self._replicas = Replicas(clock or SystemClock())
        self._zygote = Zygote(home, flavour, self.other_killed)

    @property
    def zygote_pid(self) -> int | None:
        return self._zygote.pid

    def other_killed(self) -> None:
        """A process of the platform that is no replica was killed: where the kernel did it, no replica is blamed."""
        self._replicas.oom_kills.take()

    async def open(self) -> None:
        become_subreaper()
        sweep(self._home)
        try:
            await self._zygote.open()
        except BaseException:
            await self._zygote.close()
            raise

    async def start(self, order: LoadOrder, observer: ReplicaObserver, log_file: Path) -> StartedReplica:
        ordered_ns = self._replicas.clock.monotonic_ns()
        async with self._replicas.starting(order, observer, log_file) as (life, undo):
            ours, theirs = socket.socketpair()
            with theirs:
                try:
                    name = f"{order.name}-r{order.revision}"
                    fork = Fork(order.replica_id, name, ordered_ns, (theirs.fileno(), life.log.fd))
                except OSError:
                    ours.close()
                    raise
            undo.callback(fork.give_up)
            self._zygote.carry_out(fork)
            link = await open_link(ours, life)
            undo.callback(link.close)
            link.send(pack(Kind.LOAD, payload=encode_load(order)))
            # Shielded: a fork that was ordered happens, and must then be given up, not forgotten.
            process = await asyncio.shield(fork.process)
            undo.pop_all()
            life.begin(process, link)
            return StartedReplica(process.pid, link)

    def drain(self, replica_id: ReplicaId) -> None:
        self._replicas.drain(replica_id)

    def kill(self, replica_id: ReplicaId, reason: ExitReason) -> None:
        self._replicas.kill(replica_id, reason)

    async def close(self) -> None:
        await self._replicas.close()
        await self._zygote.close()
        sweep(self._home, keep_children=False)
