"""The exec driver: each replica a fresh interpreter, reached over TCP with a token, as a pod is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from pathlib import Path

from autoscaler.drivers.base import DriverError, ReplicaObserver, StartedReplica
from autoscaler.drivers.environment import runtime_environment
from autoscaler.drivers.processes import ChildProcess, Children, become_subreaper, spawn
from autoscaler.drivers.replica import START_S, Replicas, open_link
from autoscaler.drivers.sweep import sweep
from serve.core.clock import Clock, SystemClock
from serve.core.events import ExitReason, LoadOrder, encode_load
from serve.core.frames import Kind, pack
from serve.core.ids import ReplicaId

_PORT_BYTES = 16


class ExecDriver:
    """Starts replicas by exec. Owned by the loop, which must run in the main thread.

    The replica listens on a free loopback port and takes the first connection that shows its token, which it got
    through a pipe: neither its command line nor its environment holds it.
    """

    def __init__(self, home: Path, *, clock: Clock | None = None) -> None:
        self._home = home
        self._replicas = Replicas(clock or SystemClock())
        self._children = Children()

    def other_killed(self) -> None:
        """A process of the platform that is no replica was killed: where the kernel did it, no replica is blamed."""
        self._replicas.oom_kills.take()

    async def open(self) -> None:
        become_subreaper()
        sweep(self._home)

    async def start(self, order: LoadOrder, observer: ReplicaObserver, log_file: Path) -> StartedReplica:
        ordered_ns = self._replicas.clock.monotonic_ns()
        async with self._replicas.starting(order, observer, log_file) as (life, undo):
            token = secrets.token_hex(32).encode()
            process, announced = self._spawn(order.replica_id, ordered_ns, token, life.log.fd)
            undo.callback(process.kill)
            port = await _read_port(announced)
            if port is None:
                raise DriverError(f"the replica's process ended at once; its last words: {life.log.last_words()}")
            link = await open_link(await _connect(port), life)
            undo.pop_all()
            link.send(pack(Kind.HELLO, payload=token))
            link.send(pack(Kind.LOAD, payload=encode_load(order)))
            life.begin(process, link)
            return StartedReplica(process.pid, link)

    def drain(self, replica_id: ReplicaId) -> None:
        self._replicas.drain(replica_id)

    def kill(self, replica_id: ReplicaId, reason: ExitReason) -> None:
        self._replicas.kill(replica_id, reason)

    async def close(self) -> None:
        await self._replicas.close()
        await self._children.close()
        sweep(self._home, keep_children=False)

    def _spawn(self, replica_id: str, ordered_ns: int, token: bytes, log_fd: int) -> tuple[ChildProcess, int]:
        """Return the process, and the descriptor on which it announces its port (ours to close). Raise OSError."""
        with contextlib.ExitStack() as theirs:
            token_read, token_write = os.pipe()
            theirs.callback(os.close, token_read)
            os.write(token_write, token)
            os.close(token_write)
            announce_read, announce_write = os.pipe()
            theirs.callback(os.close, announce_write)
            arguments = ["--listen", "127.0.0.1:0", "--token-fd", "3", "--announce-fd", "4", "--wait-s", str(START_S)]
            arguments += ["--parent-pid", str(os.getpid()), "--ordered-ns", str(ordered_ns)]
            environment = runtime_environment(self._home, replica_id)
            try:
                pid = spawn("runtime", arguments, environment, log_fd, [token_read, announce_write])
                process = self._children.adopt(pid)
            except OSError:
                os.close(announce_read)
                raise
        return process, announce_read


async def _read_port(descriptor: int) -> int | None:
    """Return the port announced on a pipe, None where the process ended before; close the pipe."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(descriptor, wake)
    try:
        await readable
        # One short line, written at once.
        line = os.read(descriptor, _PORT_BYTES)
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return int(line) if line.endswith(b"\n") else None


async def _connect(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    except BaseException:
        sock.close()
        raise
    return sock
