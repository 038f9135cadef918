"""One replica in a process of its own, reached over TCP: what the exec driver starts and what a pod runs.

`python -P -m runtime --listen HOST:PORT (--token-fd N | --token-file PATH) [--announce-fd N] [--parent-pid P]`

The port is written to the announce descriptor (one decimal line). The first connection whose first frame is a HELLO
with the token becomes the replica's only one; everything else is closed and the replica keeps waiting. Little is
imported until then, so that the caller can connect while libraries load. SIGTERM drains it: what came is answered;
before the model is loaded it just leaves.
"""

from __future__ import annotations

import argparse
import hmac
import os
import selectors
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from serve.core.frames import CONNECTION_STREAM, HEADER, HEADER_BYTES, Kind

MAX_TOKEN_BYTES = 1024
HELLO_TIMEOUT_S = 5.0
MAX_STRANGERS = 16
"""Connections that may be silent at a time; the oldest goes first."""
EXIT_ORPHANED = 4
EXIT_USAGE = 2
EXIT_NOBODY_CAME = 5


class NobodyCame(Exception):
    """No connection with the token within the time given."""


def main(arguments: list[str] | None = None) -> int:
    started_ns = time.monotonic_ns()
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, _leave)
    if options.parent_pid is not None:
        # The driver hands over these two; what else is open leaked in from whoever started the platform.
        os.closerange(1 + max(options.token_fd or 2, options.announce_fd or 2), os.sysconf("SC_OPEN_MAX"))
        if not _bind_to(options.parent_pid):
            return EXIT_ORPHANED
    token = _read_token(options.token_fd, options.token_file)
    if not token:
        print("the token is empty: nobody could be told from a stranger", file=sys.stderr)  # noqa: T201
        return EXIT_USAGE
    with listen(options.listen) as listener:
        if options.announce_fd is not None:
            with os.fdopen(options.announce_fd, "w") as announce:
                announce.write(f"{listener.getsockname()[1]}\n")
        try:
            connection = admit(listener, token, options.wait_s)
        except NobodyCame:
            return EXIT_NOBODY_CAME
    from runtime import worker

    return worker.run(connection, started_ns=options.ordered_ns or started_ns, drain_signal=signal.SIGTERM)


def listen(address: str) -> socket.socket:
    """Listen on `HOST:PORT`, `[IPV6]:PORT` or port 0 for any free one. Raise OSError or ValueError."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    return socket.create_server((host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


def admit(listener: socket.socket, token: bytes, wait_s: float | None = None) -> socket.socket:
    """Return the first connection that says HELLO with `token`, blocking. Raise NobodyCame after `wait_s` seconds.

    Only the bytes of the HELLO frame are taken off the connection.
    """
    deadline = None if wait_s is None else time.monotonic() + wait_s
    strangers: dict[socket.socket, _Stranger] = {}
    with selectors.DefaultSelector() as selector:
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ)

        def dismiss(connection: socket.socket) -> None:
            del strangers[connection]
            selector.unregister(connection)
            connection.close()

        try:
            while True:
                now = time.monotonic()
                for connection in [c for c, stranger in strangers.items() if now >= stranger.deadline]:
                    dismiss(connection)
                if deadline is not None and now >= deadline:
                    raise NobodyCame
                limits = [stranger.deadline for stranger in strangers.values()]
                limits += [] if deadline is None else [deadline]
                for key, _ in selector.select(min(limits) - now if limits else None):
                    if key.fileobj is listener:
                        if len(strangers) >= MAX_STRANGERS:
                            dismiss(next(iter(strangers)))
                        _welcome(listener, selector, strangers)
                        continue
                    visitor = key.fileobj
                    assert isinstance(visitor, socket.socket)
                    if visitor not in strangers:  # dismissed in this turn
                        continue
                    verdict = strangers[visitor].listen(token)
                    if verdict is True:
                        del strangers[visitor]
                        visitor.setblocking(True)
                        visitor.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        return visitor
                    if verdict is False:
                        dismiss(visitor)
        finally:
            for connection in strangers:
                connection.close()


class _Stranger:
    """A connection that has not shown the token yet."""

    def __init__(self, connection: socket.socket) -> None:
        self.deadline = time.monotonic() + HELLO_TIMEOUT_S
        self._connection = connection
        self._received = b""

    def listen(self, token: bytes) -> bool | None:
        """Read on. Return True for the right token, False for anything else, None while it is incomplete."""
        try:
            data = self._connection.recv(self._missing_bytes())
        except BlockingIOError:
            return None
        except OSError:
            return False
        if not data:
            return False
        self._received += data
        if len(self._received) == HEADER_BYTES and not self._is_hello():
            return False
        if self._missing_bytes():
            return None
        return hmac.compare_digest(self._received[HEADER_BYTES:], token)

    def _is_hello(self) -> bool:
        length, kind, _, zero, stream = HEADER.unpack(self._received[:HEADER_BYTES])
        return bool(kind == Kind.HELLO and not zero and stream == CONNECTION_STREAM and 0 < length <= MAX_TOKEN_BYTES)

    def _missing_bytes(self) -> int:
        if len(self._received) < HEADER_BYTES:
            return HEADER_BYTES - len(self._received)
        length: int = HEADER.unpack(self._received[:HEADER_BYTES])[0]
        return HEADER_BYTES + length - len(self._received)


def _welcome(
    listener: socket.socket, selector: selectors.BaseSelector, strangers: dict[socket.socket, _Stranger]
) -> None:
    try:
        connection, _ = listener.accept()
    except OSError:  # gone again
        return
    connection.setblocking(False)
    selector.register(connection, selectors.EVENT_READ)
    strangers[connection] = _Stranger(connection)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m runtime", description="One replica, reached over TCP.")
    parser.add_argument("--listen", required=True, metavar="HOST:PORT", help="port 0: any free one")
    token = parser.add_mutually_exclusive_group(required=True)
    token.add_argument("--token-fd", type=int, help="descriptor to read the token from, to its end")
    token.add_argument("--token-file", type=Path, help="file with the token")
    parser.add_argument("--announce-fd", type=int, help="descriptor to write the port to")
    parser.add_argument("--parent-pid", type=int, help="exit when this parent does")
    parser.add_argument("--ordered-ns", type=int, help="CLOCK_MONOTONIC of this machine when the replica was ordered")
    parser.add_argument("--wait-s", type=float, help="exit when nobody with the token came for so long")
    return parser.parse_args(arguments)


def _bind_to(parent_pid: int) -> bool:
    from runtime import parentage

    try:
        parentage.die_with(parent_pid)
    except parentage.Orphaned:
        return False
    parentage.default_signals()
    parentage.raise_oom_score()
    return True


def _read_token(descriptor: int | None, file: Path | None) -> bytes:
    if descriptor is None:
        assert file is not None
        return file.read_bytes().strip()
    with os.fdopen(descriptor, "rb") as pipe:
        return pipe.read(MAX_TOKEN_BYTES).strip()


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    """Nothing is loaded and nobody is served: draining is leaving."""
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(main())
