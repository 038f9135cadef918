"""The platform on this machine: is it there, start it in the background, stop it."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from serve.cli.failure import CommandError, usage
from serve.cli.output import note
from serve.core.home import Home, PlatformInfo

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000
_POLL_S = 0.02
_HEALTH_TIMEOUT_S = 2.0
_LAST_LINES = 12


def require_linux() -> None:
    if sys.platform != "linux":
        raise CommandError(
            "platform_failed",
            f"the platform runs on Linux only, and this is {sys.platform}: run it on a Linux machine or in a Linux "
            "virtual machine, and name it with --url or SERVE_URL",
        )


def running(home: Home) -> PlatformInfo | None:
    """Return the platform that runs in `home`, or None. What a dead one left behind does not count."""
    info = home.read_info()
    if info is None or not _is_alive(info.pid) or not _is_locked(home.lock):
        return None
    return info


def command_line(home: Home, host: str, port: int) -> list[str]:
    """Return the command of a platform process. `-P`: the folder we stand in must not shadow our packages."""
    where = ["--home", str(home.path), "--host", host, "--port", str(port)]
    return [sys.executable, "-P", "-m", "serve.platform", *where]


def configured_address() -> tuple[str, int]:
    """Return host and port from SERVE_HOST and SERVE_PORT, or the defaults. Raises CommandError."""
    text = os.environ.get("SERVE_PORT") or str(DEFAULT_PORT)
    if not text.isdecimal() or int(text) > 65535:
        raise usage(f"SERVE_PORT '{text}' is not a port: set a number from 0 to 65535")
    return os.environ.get("SERVE_HOST") or DEFAULT_HOST, int(text)


def check_port_free(host: str, port: int) -> None:
    """Raise CommandError where nobody can listen on `host`:`port`; the platform itself checks again."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise usage(f"--host '{host}' is not an address of this machine: use 127.0.0.1") from error
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            raise _cannot_listen(error, host, port) from error


def start_detached(home: Home, wait_s: float, *, host: str | None = None, port: int | None = None) -> PlatformInfo:
    """Start a platform that outlives this command; return once it answers. Raises CommandError with its last words."""
    require_linux()
    known_host, known_port = configured_address()
    host, port = host or known_host, known_port if port is None else port
    check_port_free(host, port)
    log_file = _prepare(home)
    from_byte = log_file.stat().st_size
    with log_file.open("ab") as log:
        process = subprocess.Popen(  # noqa: S603
            command_line(home, host, port),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=home.path,
            start_new_session=True,
        )
    try:
        info = _await_ready(home, process, log_file, from_byte, wait_s)
    except BaseException:  # nobody waits for it any more: do not leave it half started
        process.terminate()
        raise
    note(f"started the platform at {info.url} (pid {info.pid}; `serve down` ends it)")
    return info


def stop(home: Home, wait_s: float) -> PlatformInfo | None:
    """Ask the platform of `home` to drain and end; return what ran once it is gone, None where none ran."""
    info = running(home)
    if info is None:
        return None
    try:
        handle = os.pidfd_open(info.pid)
    except ProcessLookupError:
        return None
    try:
        # The handle names one process for good; only then is it certain that the lock's holder is who gets the signal.
        if running(home) != info:
            return None
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        poller = select.poll()
        poller.register(handle, select.POLLIN)
        if not poller.poll(round(wait_s * 1000)):
            raise CommandError(
                "wait_timeout",
                f"the platform (pid {info.pid}) still drains after {wait_s:g} s: run `serve down` again to wait on, "
                f"or `kill -9 {info.pid}` to lose the requests inside",
            )
    finally:
        os.close(handle)
    return info


def _prepare(home: Home) -> Path:
    try:
        home.create()
        log_file = home.logs / "platform.log"
        log_file.touch(0o600)
    except OSError as error:
        raise CommandError("platform_failed", home.unusable(error)) from error
    return log_file


def _await_ready(
    home: Home, process: subprocess.Popen[bytes], log_file: Path, from_byte: int, wait_s: float
) -> PlatformInfo:
    until = time.monotonic() + wait_s
    while time.monotonic() < until:
        ended = process.poll() is not None
        info = running(home)
        if info is not None and (ended or info.pid == process.pid) and _answers(info):
            return info  # if ours ended, somebody else's `up` was faster
        if ended and info is None:
            for line in _last_lines(log_file, from_byte):
                note(f"  {line}")
            raise CommandError(
                "platform_failed", f"the platform ended with status {process.returncode}; the whole log: {log_file}"
            )
        time.sleep(_POLL_S)
    for line in _last_lines(log_file, from_byte):
        note(f"  {line}")
    raise CommandError(
        "wait_timeout", f"the platform was not ready after {wait_s:g} s and was told to end; see {log_file}"
    )


def _answers(info: PlatformInfo) -> bool:
    from serve.cli.client import Client

    try:
        Client(info.url, None, timeout_s=_HEALTH_TIMEOUT_S).get_text("/v2/health/ready")
    except CommandError:
        return False
    return True


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_locked(path: Path) -> bool:
    """Return whether a process holds the home's lock: the kernel drops it when its holder dies."""
    import fcntl  # missing where the command may still talk to a platform elsewhere

    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _cannot_listen(error: OSError, host: str, port: int) -> CommandError:
    if error.errno == errno.EADDRINUSE:
        return CommandError(
            "platform_failed",
            f"port {port} of {host} is in use by another program: free it, or choose another with `serve up --port`",
        )
    if error.errno == errno.EACCES:
        return CommandError("platform_failed", f"port {port} needs privileges: choose one from 1024 to 65535")
    return CommandError("platform_failed", f"cannot listen on {host}:{port} ({error.strerror}): use --host 127.0.0.1")


def _last_lines(log_file: Path, from_byte: int) -> Iterator[str]:
    """Yield the last lines written after `from_byte`; of JSON log lines, the message."""
    with log_file.open("rb") as file:
        file.seek(from_byte)
        lines = file.read().decode(errors="replace").splitlines()
    for line in lines[-_LAST_LINES:]:
        try:
            yield str(json.loads(line)["message"])
        except (ValueError, KeyError, TypeError):
            yield line
