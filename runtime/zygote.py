"""The zygote: a process with everything imported and no model, that forks into replicas on command.

`python -P -m runtime.zygote --control-fd N --parent-pid P --flavour onnx`, exec'd by the local driver with the
environment that keeps libraries from starting threads. One SOCK_SEQPACKET socket carries one JSON object a message:

- zygote → driver, once: `{"ready": true}`, or `{"error": sentence}` and exit status 3
- driver → zygote: `{"number", "replica_id", "name", "ordered_ns"}` and two descriptors: the replica's socket, its log
- → driver, in any order: `{"number", "pid"}`, or `{"number", "error"}`, or `{"number", "died"}`: try again

A replica is a grandchild: its parent, the process in between, reports its pid and exits, and the platform (a child
subreaper) inherits it. So the zygote may die without its replicas, and the platform reads their exit status. What the
replica is to load comes on its own socket.

Two promises make every death on the way harmless. A replica touches nothing before its pid was reported: one whose
parent died first leaves, so that the same order may be carried out again. And whoever holds the control socket is in
the zygote's session: a driver that sees its end knows that no report is still to come, and can bring it about by
killing that session.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import os
import socket
import sys
import traceback
from dataclasses import dataclass
from typing import Any, NoReturn

from runtime import parentage
from runtime.parentage import Orphaned, ProcessText

FLAVOURS: dict[str, tuple[str, ...]] = {
    "bare": ("runtime.engines.scripted",),
    "onnx": ("runtime.engines.scripted", "runtime.engines.onnx"),
}
MAX_COMMAND_BYTES = 4096
EXIT_UNFIT = 3
EXIT_ORPHANED = 4
EXIT_BROKEN = 70
"""The worker raised what it should have handled (sysexits.h: EX_SOFTWARE)."""
_FIRST_FD = 3
"""Above stdin, stdout and stderr."""


class Unfit(Exception):
    """This process cannot fork safely. The sentence says why and what to do."""


@dataclass(frozen=True, slots=True)
class Command:
    number: int
    """Names the command in the answer."""
    replica_id: str
    name: str
    """What `ps` shows: the deployment and revision."""
    ordered_ns: int
    """CLOCK_MONOTONIC when the platform wanted this replica."""
    socket_fd: int
    log_fd: int


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m runtime.zygote", description="Forks replicas for the local driver."
    )
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    parser.add_argument("--flavour", choices=sorted(FLAVOURS), required=True)
    options = parser.parse_args(arguments)
    try:
        parentage.die_with(options.parent_pid)
    except Orphaned:
        return EXIT_ORPHANED
    # Replicas inherit what is set here once: it costs each of them nothing.
    parentage.default_signals()
    parentage.raise_oom_score()
    os.closerange(options.control_fd + 1, os.sysconf("SC_OPEN_MAX"))
    control = socket.socket(fileno=options.control_fd)
    try:
        prepare(options.flavour)
    except Unfit as error:
        _tell(control, {"error": str(error)})
        return EXIT_UNFIT
    _tell(control, {"ready": True})
    return serve(control, options.parent_pid, f"zygote-{options.flavour}")


def prepare(flavour: str) -> None:
    """Import what replicas of `flavour` need, as far as it is installed. Raise Unfit."""
    for module in ("numpy", "runtime.worker"):
        importlib.import_module(module)
    for module in FLAVOURS[flavour]:
        try:
            importlib.import_module(module)
        except ImportError as error:
            # A deployment that wants this engine is told so when it loads; the others go on.
            print(f"{module} cannot be imported: {error}", file=sys.stderr)  # noqa: T201
    check_single_thread()
    # Collected now and never looked at again: a later collection in a child would copy every page it marks.
    gc.collect()
    gc.freeze()


def check_single_thread() -> None:
    """Raise Unfit if this process has more than one thread: a fork would copy locks that other threads hold."""
    count = parentage.thread_count()
    if count != 1:
        raise Unfit(
            f"the zygote has {count} threads and must have one to fork safely: start it with ORT_DISABLE_TELEMETRY=1 "
            "OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1, and import nothing that starts threads"
        )


def serve(control: socket.socket, platform_pid: int, own_name: str) -> int:
    """Fork on command until the driver closes its end."""
    parentage.set_name(own_name)
    text = ProcessText()
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, MAX_COMMAND_BYTES, 2, socket.MSG_CMSG_CLOEXEC)
        if not data:
            return 0
        message = json.loads(data)
        command = Command(
            message["number"], message["replica_id"], message["name"], message["ordered_ns"], *descriptors
        )
        try:
            check_single_thread()
            parentage.set_name(command.name)
            with text.shown(command.replica_id, f"serve replica {command.replica_id}"):
                _fork(control, command, platform_pid)
            parentage.set_name(own_name)
        except (Unfit, OSError) as error:
            _tell(control, {"number": command.number, "error": f"cannot fork: {error}"})
            if isinstance(error, Unfit):
                return EXIT_UNFIT
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


def _fork(control: socket.socket, command: Command, platform_pid: int) -> None:
    between = parentage.bare_fork()
    if between == 0:
        _fork_replica(control, command, platform_pid)
    _, status = os.waitpid(between, 0)
    if status != 0:
        _tell(control, {"number": command.number, "died": f"the process in between ended with wait status {status}"})


def _fork_replica(control: socket.socket, command: Command, platform_pid: int) -> NoReturn:
    """In the process between: fork the replica, report it, and leave so that the platform inherits it."""
    status = 1
    try:
        between = os.getpid()
        reported, report = os.pipe()
        pid = os.fork()
        if pid == 0:
            control.detach()
            _become_replica(command, platform_pid, between, reported)
        _tell(control, {"number": command.number, "pid": pid})
        os.write(report, b"!")
        status = 0
    except OSError as error:
        _tell(control, {"number": command.number, "error": f"cannot fork: {error}"})
        status = 0
    finally:
        os._exit(status)


def _become_replica(command: Command, platform_pid: int, between_pid: int, reported: int) -> NoReturn:
    """In the replica: keep only what is its own, work, exit. Never returns into the zygote's code."""
    status = EXIT_BROKEN
    try:
        sock = _keep_own_descriptors(command, reported)
        parentage.reseed()
        parentage.wait_until_reported(reported)
        os.setsid()
        parentage.wait_for_parent(platform_pid, between_pid)
        parentage.die_with(platform_pid)
        status = sys.modules["runtime.worker"].run(sock, started_ns=command.ordered_ns)
    except Orphaned:
        status = EXIT_ORPHANED
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else EXIT_BROKEN
    except BaseException:
        traceback.print_exc()
    finally:
        # Not sys.exit: the zygote's own clean-up must not run in its children.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _keep_own_descriptors(command: Command, reported: int) -> socket.socket:
    """Leave stdin (empty), stdout and stderr (the log), the socket and `reported`; close everything else."""
    os.dup2(command.log_fd, 1)
    os.dup2(command.log_fd, 2)
    lower, higher = sorted((command.socket_fd, reported))
    os.closerange(_FIRST_FD, lower)
    os.closerange(lower + 1, higher)
    os.closerange(higher + 1, os.sysconf("SC_OPEN_MAX"))
    return socket.socket(fileno=command.socket_fd)


def _tell(control: socket.socket, message: dict[str, Any]) -> None:
    """Send one message. A driver that is gone needs none: the next receive finds the end."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        control.send(json.dumps(message).encode())


if __name__ == "__main__":
    sys.exit(main())
