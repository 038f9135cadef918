"""The platform's end of a zygote: commands to fork, reports of what was forked, a new zygote when one dies.

The protocol is described in `runtime/zygote.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Callable
from pathlib import Path

from autoscaler.drivers.base import DriverError
from autoscaler.drivers.environment import REPLICA_ID_BYTES, runtime_environment
from autoscaler.drivers.log import ReplicaLog
from autoscaler.drivers.processes import CLOSE_S, ChildProcess, Children, ExitStatus, spawn

log = logging.getLogger(__name__)

READY_S = 60.0
"""A zygote that has not imported everything by then is replaced."""
SILENT_S = 5.0
"""A zygote that answers no command for so long hangs, and is replaced."""
FORK_S = 20.0
"""Longest time until some zygote carries a command out."""
SESSION_GRACE_S = 1.0
"""How long what a dead zygote was forking has to report itself."""
MAX_MESSAGE_BYTES = 65536
MAX_OUTSTANDING = 16
"""Commands in the zygote's socket at a time: far below what the kernel queues."""
FIRST_BACKOFF_S = 0.05
LONGEST_BACKOFF_S = 10.0
LONG_LIFE_S = 10.0
"""A zygote that lived so long, or forked a replica, is replaced at once; back-off is for those that die young."""
MAX_TRIES = 3
"""A command whose zygote died before it was carried out goes to the next one so often."""


_numbers = itertools.count(1)


class Fork:
    """One command. Owns copies of the descriptors that the replica gets, until it is carried out or has failed."""

    def __init__(self, replica_id: str, name: str, ordered_ns: int, descriptors: tuple[int, int]) -> None:
        self.number = next(_numbers)
        command = {"number": self.number, "replica_id": replica_id, "name": name, "ordered_ns": ordered_ns}
        self.message = json.dumps(command).encode()
        self.descriptors: list[int] = []
        try:
            for descriptor in descriptors:
                self.descriptors.append(os.dup(descriptor))
        except OSError:
            self._done(None)
            raise
        self.tries = 0
        self.is_wanted = True
        self.process: asyncio.Future[ChildProcess] = asyncio.get_running_loop().create_future()
        self.process.add_done_callback(self._done)

    def fail(self, sentence: str) -> None:
        if not self.process.done():
            self.process.set_exception(DriverError(sentence))

    def give_up(self) -> None:
        """Nobody wants the replica any more: do not begin, or kill it as soon as it is there."""
        self.is_wanted = False
        self.process.add_done_callback(_kill_unwanted)
        if not self.tries:
            self.fail("called off")

    def _done(self, _: object) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


class Zygote:
    """A zygote that is replaced when it dies. Owned by the loop; at most one `open` and one `close`.

    Commands wait while none is ready, and survive the zygote that took them: only one that was not carried out is
    given to the next.
    """

    def __init__(self, home: Path, flavour: str, on_killed: Callable[[], None] = lambda: None) -> None:
        """`on_killed`: told when SIGKILL, which nobody here sent, ended a zygote or what it was forking."""
        self._home = home
        self._on_killed = on_killed
        self._flavour = flavour
        self._log_file = home / "logs" / f"zygote-{flavour}.log"
        self._log: ReplicaLog | None = None
        self._process: ChildProcess | None = None
        self._control: socket.socket | None = None
        self._opened: asyncio.Future[None] | None = None
        self._is_ready = False
        self._is_closed = False
        self._born_s = 0.0
        self._backoff_s = FIRST_BACKOFF_S
        self._respawn: asyncio.TimerHandle | None = None
        self._watchdog: asyncio.TimerHandle | None = None
        self._sentence = ""
        """What this zygote said, or we know, of its end."""
        self._last_end = ""
        """Why the zygote before this one ended, or could not begin."""
        self._waiting: deque[Fork] = deque()
        self._outstanding: dict[int, Fork] = {}
        self._children = Children()
        self._ended: asyncio.Future[None] | None = None

    @property
    def pid(self) -> int | None:
        """The pid of the zygote that is ready; None while there is none."""
        return self._process.pid if self._process is not None and self._is_ready else None

    async def open(self) -> None:
        """Start a zygote and return when it is ready to fork. Raise DriverError."""
        self._opened = asyncio.get_running_loop().create_future()
        self._spawn()
        try:
            async with asyncio.timeout(READY_S):
                await self._opened
        except TimeoutError:
            sentence = f"the zygote was not ready within {READY_S:.0f} s: see {self._log_file}"
            raise DriverError(sentence) from None

    def carry_out(self, fork: Fork) -> None:
        """Fork as soon as possible: `fork.process` resolves to the replica's process, or to DriverError."""
        if self._is_closed:
            fork.fail(_CLOSING)
            return
        self._waiting.append(fork)
        deadline = asyncio.get_running_loop().call_later(FORK_S, self._too_late, fork)
        fork.process.add_done_callback(lambda _: deadline.cancel())
        self._send()

    async def close(self) -> None:
        """Kill the zygote and all it made; return when every one of them is reaped."""
        self._is_closed = True
        if self._respawn is not None:
            self._respawn.cancel()
        for fork in (*self._waiting, *self._outstanding.values()):
            fork.fail(_CLOSING)
            fork.give_up()
        if self._process is not None:
            self._process.kill()
        if self._ended is not None:
            # Up to the end of the control socket there may be reports of what the zygote forked last.
            await asyncio.wait([self._ended], timeout=CLOSE_S)
        await self._children.close()
        self._hang_up()

    def _spawn(self) -> None:
        self._sentence = ""
        self._born_s = asyncio.get_running_loop().time()
        try:
            self._process, self._control = self._execute()
        except (OSError, DriverError) as error:
            self._sentence = f"cannot execute the zygote: {error}"
            self._lost()
            return
        self._ended = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(self._control, self._receive)
        self._watch(READY_S)

    def _execute(self) -> tuple[ChildProcess, socket.socket]:
        """Return a new zygote's process and our end of its socket. Raise OSError, DriverError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        arguments = ["--control-fd", "3", "--parent-pid", str(os.getpid()), "--flavour", self._flavour]
        environment = runtime_environment(self._home, "-" * REPLICA_ID_BYTES)
        try:
            with theirs, contextlib.closing(ReplicaLog(self._log_file)) as self._log:
                pid = spawn("runtime.zygote", arguments, environment, self._log.fd, [theirs.fileno()])
            # Its session holds what it is just forking, which may still report itself and outlive it.
            process = self._children.adopt(pid, session_grace_s=SESSION_GRACE_S)
            process.exited.add_done_callback(self._exited)
        except BaseException:
            ours.close()
            raise
        else:
            return process, ours

    def _send(self) -> None:
        while (
            self._is_ready and self._control is not None and self._waiting and len(self._outstanding) < MAX_OUTSTANDING
        ):
            fork = self._waiting[0]
            if not fork.process.done():
                try:
                    socket.send_fds(self._control, [fork.message], fork.descriptors)
                except OSError:  # it has died: the end of the socket is about to be read
                    return
                fork.tries += 1
                if not self._outstanding:
                    self._watch(SILENT_S)
                self._outstanding[fork.number] = fork
            self._waiting.popleft()

    def _receive(self) -> None:
        while self._control is not None:
            try:
                data = self._control.recv(MAX_MESSAGE_BYTES)
            except BlockingIOError:
                return
            except ConnectionResetError:
                # It died with commands unread. Said once, and before the reports that it sent: they still come.
                continue
            except OSError:
                data = b""
            if not data:
                self._hang_up()
                self._lost()
                return
            self._message(json.loads(data))

    def _message(self, message: dict[str, object]) -> None:
        number, pid = message.get("number"), message.get("pid")
        fork = self._outstanding.pop(number, None) if isinstance(number, int) else None
        self._watch(SILENT_S if self._outstanding else None)
        if message.get("ready"):
            self._is_ready, self._last_end = True, ""
            if self._opened is not None and not self._opened.done():
                self._opened.set_result(None)
        elif isinstance(pid, int):
            self._made(fork, pid)
        elif "died" in message:
            self._stillborn(fork, str(message["died"]))
        elif fork is not None:
            fork.fail(f"the zygote could not start the replica: {message.get('error')}")
        else:
            self._sentence = str(message.get("error"))
        self._send()

    def _made(self, fork: Fork | None, pid: int) -> None:
        self._backoff_s = FIRST_BACKOFF_S
        try:
            process = self._children.adopt(pid)
        except OSError as error:
            if fork is not None:
                fork.fail(f"cannot watch the replica's process: {error.strerror}")
            return
        if fork is None or fork.process.done():
            process.kill()
        else:
            fork.process.set_result(process)

    def _stillborn(self, fork: Fork | None, why: str) -> None:
        """Nobody heard of the replica, so there is none: it leaves by itself, and is ours to reap."""
        assert self._process is not None
        self._on_killed()
        for delay_s in _STILLBORN_S:
            asyncio.get_running_loop().call_later(delay_s, self._process.reap_session)
        if fork is not None:
            self._again(fork, why)

    def _again(self, fork: Fork, why: str) -> None:
        """What should have carried the command out died: give it to the next, unless that happened too often."""
        if not fork.is_wanted:
            fork.fail("called off")
        elif fork.tries < MAX_TRIES:
            self._waiting.appendleft(fork)
        else:
            fork.fail(f"the replica's start failed {MAX_TRIES} times ({why}): see {self._log_file}")

    def _too_late(self, fork: Fork) -> None:
        why = self._last_end or "it does not answer; is the machine overloaded?"
        fork.fail(f"no zygote forked the replica within {FORK_S:.0f} s ({why}): see {self._log_file}")

    def _watch(self, silent_s: float | None) -> None:
        """Replace this zygote unless something is heard of it in so many seconds. None: nothing is expected."""
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._watchdog = None
        if silent_s is not None:
            self._watchdog = asyncio.get_running_loop().call_later(silent_s, self._hangs, silent_s)

    def _hangs(self, silent_s: float) -> None:
        self._watchdog = None
        self._sentence = f"it said nothing for {silent_s:.0f} s and was killed"
        if self._process is not None:
            self._process.exited.remove_done_callback(self._exited)
            # The end of its socket follows, and with it the next zygote.
            self._process.kill()

    def _hang_up(self) -> None:
        self._is_ready = False
        self._watch(None)
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()
            self._control = None
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def _exited(self, status: asyncio.Future[ExitStatus]) -> None:
        if status.result().signal == signal.SIGKILL and not self._is_closed:
            self._on_killed()

    def _lost(self) -> None:
        """The zygote is gone, and no report of it is still to come."""
        if self._process is not None:
            self._process.kill()
            # What it forked has been reported, or has left.
            self._process.release_session()
            self._process = None
        if self._is_closed:
            return
        words = self._log.last_words() if self._log is not None else ""
        self._last_end = self._sentence or words or "it said nothing"
        if self._opened is not None and not self._opened.done():
            self._opened.set_exception(DriverError(f"the zygote did not start: {self._last_end}"))
            return
        for fork in reversed(self._outstanding.values()):
            self._again(fork, f"the zygote died: {self._last_end}")
        self._outstanding.clear()
        loop = asyncio.get_running_loop()
        if loop.time() - self._born_s >= LONG_LIFE_S:
            self._backoff_s = FIRST_BACKOFF_S
        log.error("the zygote died: starting another", extra={"in_s": self._backoff_s, "why": self._last_end})
        self._respawn = loop.call_later(self._backoff_s, self._spawn)
        self._backoff_s = min(self._backoff_s * 2, LONGEST_BACKOFF_S)


_STILLBORN_S = (0.01, 0.1, 1.0)
_CLOSING = "the driver is closed: the platform is shutting down"


def _kill_unwanted(process: asyncio.Future[ChildProcess]) -> None:
    if process.exception() is None:
        process.result().kill()
