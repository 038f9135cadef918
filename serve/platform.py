"""The composition root of the one-machine platform: `python -m serve.platform`, which `serve up` runs.

One process, one asyncio loop: HTTP server, activator, autoscaler, control plane, journal. The ledger, the zygote and
the replicas are processes of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import uvloop
from pydantic import ValidationError

from activator.accounts import Accounts
from activator.app import Activator
from activator.door import FrontDoor, listen
from activator.head import error_headers
from activator.limits import Limits, within
from activator.router import Router
from activator.server import CYCLE, respond
from autoscaler.drivers.base import DriverError
from autoscaler.drivers.exec import ExecDriver
from autoscaler.drivers.local import LocalDriver
from autoscaler.loop import Autoscaler
from autoscaler.surroundings import Surroundings as ScalingSurroundings
from billing.journal import Journal, JournalError
from billing.price_file import PriceBookError, load_price_book
from billing.sync import JournalSync, SyncPolicy
from cache.store import ModelStore
from serve.control.app import ControlPlane, Surroundings
from serve.control.books import LedgerBooks
from serve.control.ledger_process import LedgerProcess
from serve.control.machine_recorder import MachineRecorder
from serve.control.soundness import SoundModels
from serve.control.what_if import WhatIf
from serve.core import logs, machine
from serve.core.clock import NS_PER_S, SystemClock
from serve.core.errors import MethodNotAllowed, NotFound, ServeError
from serve.core.home import Home, PlatformInfo
from serve.core.ids import RequestIds, new_writer_id
from serve.core.lifecycle import Lifecycle
from serve.core.metrics import Metrics
from serve.core.settings import PlatformSettings
from serve.core.spec import ENGINES, TEST_ENGINES
from serve.core.version import version

log = logging.getLogger("serve.platform")

_MEMORY_SHARE = 0.8
_LAST_EXITS_S = 0.5
"""For replicas that have nothing inside, when requests have used up the time to drain."""
_ADMIN_CONNECTIONS = 64
"""Granted to the port of the control plane, where it has one of its own, whatever happens at the other."""
_METRICS_TYPE = b"content-type: text/plain; version=0.0.4; charset=utf-8\r\n"


class StartError(Exception):
    """The platform cannot start. The sentence names the remedy; the process exits 1."""


_EXPECTED = (StartError, DriverError, JournalError, PriceBookError, ServeError)
"""Errors that end the platform with a sentence instead of a traceback."""


class Platform:
    """Everything of one home, put together. Owned by the event loop of `run`."""

    def __init__(self, home: Home, settings: PlatformSettings, lifecycle: Lifecycle, urls: tuple[str, str]) -> None:
        self.settings = settings
        self.clock = SystemClock()
        self.metrics = Metrics()
        self._home = home
        self._urls = urls
        self._started_wall_ns = self.clock.wall_ns()
        self._drained_by_ns = 0
        self._prices = load_price_book(home.prices)
        writer = new_writer_id()
        self.ledger = LedgerProcess(home.journal, home.ledger, lifecycle, lambda: self.driver.other_killed())
        journal = Journal(home.journal, writer, self.clock)
        self.accounts = Accounts(journal, self._prices, self.clock, self.metrics, settings.checkpoint_interval)
        policy = SyncPolicy(settings.journal_sync)
        self._sync = JournalSync(journal, policy, self.accounts.writer)
        self.accounts.writer.waits_for_sync = policy is SyncPolicy.ALWAYS
        self.accounts.writer.on_written(self._sync.written)
        self.accounts.writer.on_written(self.ledger.poke)
        self.ids = RequestIds(writer)
        self.router = Router(self.ids, self.clock, self.accounts, self.metrics)
        self.activator = Activator(self.router, self.ids, self.clock, self.metrics, int(settings.body_limit))
        self.store = ModelStore(home.store, int(settings.store_budget), self.clock)
        self.driver = LocalDriver(home.path) if settings.driver == "local" else ExecDriver(home.path)
        self._machine = MachineRecorder(journal, self.accounts.writer, self.clock, self._own_pids)
        self.autoscaler = Autoscaler(
            ScalingSurroundings(
                pool=self.router,
                driver=SoundModels(self.driver, self.store, lifecycle, lambda lost: self.control.damaged(lost)),
                clock=self.clock,
                metrics=self.metrics,
                lifecycle=lifecycle,
                memory_budget_bytes=self._memory_budget_bytes(),
                cores=machine.cores(),
                logs=home.logs,
                drain_timeout_s=settings.drain_timeout,
                on_memory_learned=lambda key, size_bytes: self.control.memory_learned(key, size_bytes),
            )
        )
        self.router.listener = self.autoscaler
        self.router.revision_state = self.autoscaler.state_of
        self.router.expected_start_s = self.autoscaler.expected_cold_start_s
        self.control = ControlPlane(self._surroundings(home, lifecycle))

    def _memory_budget_bytes(self) -> int:
        return int(self.settings.memory_budget or machine.memory_bytes() * _MEMORY_SHARE)

    def _surroundings(self, home: Home, lifecycle: Lifecycle) -> Surroundings:
        books = LedgerBooks(self.ledger.sync, home.ledger, home.journal, lambda: self._prices, self._write_state)
        forecaster = WhatIf(
            books.catch_up, home.ledger, lambda: self._prices, self._memory_budget_bytes(), machine.cores()
        )
        return Surroundings(
            home=home,
            clock=self.clock,
            metrics=self.metrics,
            lifecycle=lifecycle,
            store=self.store,
            scaler=self.autoscaler,
            router=self.router,
            books=books,
            forecaster=forecaster,
            prices=lambda: self._prices,
            describe_platform=self.describe,
            data_url=self._urls[0],
            hosts=[self.settings.host],
            cores=machine.cores(),
            body_limit_bytes=int(self.settings.body_limit),
            keep_revisions=self.settings.keep_revisions,
            engines=ENGINES | (TEST_ENGINES if self.settings.test_engines else frozenset()),
        )

    def _own_pids(self) -> tuple[int | None, int | None]:
        """Return the pids of ledger and zygote."""
        return self.ledger.pid, self.driver.zygote_pid if isinstance(self.driver, LocalDriver) else None

    def _write_state(self) -> None:
        """Put open lives and the machine's time into the journal as they are now."""
        self.accounts.checkpoint()
        self._machine.write()

    def describe(self) -> dict[str, Any]:
        """Return what `/api/v1/platform` says."""
        return {
            "version": version(),
            "pid": os.getpid(),
            "url": self._urls[0],
            "admin_url": self._urls[1],
            "home": str(self._home.path),
            "driver": self.settings.driver,
            "ledger_pid": self.ledger.pid,
            "started_wall_ns": self._started_wall_ns,
        }

    def exposition(self) -> bytes:
        """Return the metrics in Prometheus text format."""
        self.metrics.store_bytes.set(self.store.used_bytes)
        self.metrics.store_evictions.set(self.store.evictions)
        self.control.measure()
        return self.metrics.exposition(self.clock.monotonic_ns())

    async def open(self) -> None:
        """Start the processes beside this one, then bring back what the registry says."""
        await self.ledger.start()
        await self.driver.open()
        self._machine.write()
        self.control.restore()

    def begin_drain(self) -> None:
        """From now on the drain timeout runs, for requests and replicas together."""
        self._drained_by_ns = self.clock.monotonic_ns() + round(self.settings.drain_timeout * NS_PER_S)
        self.router.is_draining = True
        self.control.close()

    async def close(self) -> None:
        """End what `open` started, in the order in which one needs the other. Leaves no process behind."""
        left_s = (self._drained_by_ns - self.clock.monotonic_ns()) / NS_PER_S
        await self.autoscaler.shutdown(max(_LAST_EXITS_S, left_s))
        await self.driver.close()
        self._machine.close()
        await self._sync.close()
        try:
            self.accounts.close()
        finally:
            await self.ledger.close()


class FrontApp:
    """Sends each path where it belongs: `/v2` to the activator, `/api/v1` to the control plane, `/metrics` here."""

    def __init__(self, platform: Platform, *, data: bool, admin: bool) -> None:
        self._platform = platform
        self._data = data
        self._admin = admin

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        path: str = scope["path"]
        if self._data and (path == "/v2" or path.startswith("/v2/")):
            await self._platform.activator(scope, receive, send)
        elif self._admin and path.startswith("/api/"):
            await self._platform.control.app(scope, receive, send)
        elif self._admin and path == "/metrics" and scope["method"] in {"GET", "HEAD"}:
            await respond(scope[CYCLE], 200, _METRICS_TYPE, self._platform.exposition())
        else:
            error, request_id = self._refusal(path), self._platform.ids.next()
            await respond(
                scope[CYCLE], error.status, error_headers(error, request_id), orjson.dumps(error.body(request_id))
            )

    def _refusal(self, path: str) -> ServeError:
        if self._admin and path == "/metrics":
            return MethodNotAllowed("Method Not Allowed: /metrics takes GET or HEAD", allow=("GET", "HEAD"))
        here = ["/v2"] * self._data + ["/api/v1", "/metrics"] * self._admin
        return NotFound(f"Not Found: at this address there are {', '.join(here)}; see the README")


async def run(home: Home, settings: PlatformSettings, sockets: list[socket.socket], urls: tuple[str, str]) -> None:
    """Serve until SIGTERM or SIGINT, then drain: no new request is taken, those inside finish.

    A second signal ends everything at once, as a crash would: the books are closed by the next start.
    """
    stopping = asyncio.Event()

    def stop(number: int) -> None:
        if stopping.is_set():
            log.warning("told a second time: the platform ends at once", extra={"signal": number})
            os._exit(128 + number)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    async with Lifecycle() as lifecycle:
        platform = Platform(home, settings, lifecycle, urls)
        try:
            await platform.open()
            await _serve(platform, home, sockets, urls, stopping)
        finally:
            try:
                await platform.close()
            finally:
                lifecycle.stop()
    platform.control.end()
    log.info("platform is down")


async def _serve(
    platform: Platform, home: Home, sockets: list[socket.socket], urls: tuple[str, str], stopping: asyncio.Event
) -> None:
    is_split = len(sockets) > 1
    limits = door_limits(platform.settings)
    data = FrontDoor(FrontApp(platform, data=True, admin=not is_split), platform.activator.hot_path, limits)
    few = replace(limits, connections=min(limits.connections, _ADMIN_CONNECTIONS))
    doors = [data, FrontDoor(FrontApp(platform, data=False, admin=True), limits=few)][: len(sockets)]
    async with Lifecycle() as servers:
        for door, sock in zip(doors, sockets, strict=True):
            servers.spawn("http", door.run_until_stopped([sock], platform.settings.drain_timeout))
        home.write_info(PlatformInfo(urls[0], urls[1], os.getpid(), version(), platform.clock.wall_ns()))
        log.info("platform is up", extra={"url": urls[0], "home": str(home.path)})
        try:
            await stopping.wait()
            log.info("platform drains", extra={"in_flight": platform.router.in_flight()})
        finally:
            platform.begin_drain()
            home.info_file.unlink(missing_ok=True)
            asyncio.get_running_loop().call_later(platform.settings.drain_timeout, platform.router.end_drain)
            for door in doors:
                door.stop()


def door_limits(settings: PlatformSettings) -> Limits:
    """Return what clients are granted; the process gets as many descriptors as it may have."""
    return Limits(
        connections=within(machine.descriptors() - _ADMIN_CONNECTIONS, settings.connections),
        head_s=settings.head_timeout,
        stall_s=settings.stall_timeout,
        keep_alive_s=settings.keep_alive,
        unread_bytes=int(settings.unread_bytes),
    )


@contextlib.contextmanager
def locked(home: Home) -> Iterator[None]:
    """Hold the home's lock. Raise StartError where another platform holds it, or the home cannot be written."""
    try:
        home.create()
        descriptor = os.open(home.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartError(home.unusable(error)) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            info = home.read_info()
            where = f" at {info.url} (pid {info.pid})" if info else ""
            raise StartError(f"A platform already runs in {home.path}{where}; stop it with `serve down`") from error
        yield
    finally:
        os.close(descriptor)


def bind(settings: PlatformSettings) -> tuple[list[socket.socket], tuple[str, str]]:
    """Return listening sockets (data, and admin where it is split off) and their URLs. Raise StartError."""
    address = _address(settings.host)
    if not ipaddress.ip_address(address).is_loopback:
        raise StartError(
            f"Binding to {settings.host} is refused: callers are not asked for keys yet. Bind to 127.0.0.1 and put a "
            "proxy that authenticates in front"
        )
    ports = [settings.port] if settings.admin_port is None else [settings.port, settings.admin_port]
    sockets: list[socket.socket] = []
    for port in ports:
        try:
            sockets.append(listen(address, port))
        except OSError as error:
            for sock in sockets:
                sock.close()
            raise StartError(
                f"Port {port} on {settings.host} cannot be bound ({error.strerror}); choose another with --port, or "
                "--port 0 for any free one"
            ) from error
    urls = [f"http://{_bracketed(settings.host)}:{sock.getsockname()[1]}" for sock in sockets]
    return sockets, (urls[0], urls[-1])


def _address(host: str) -> str:
    """Return the address of `host`. Raise StartError where there is none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return str(socket.getaddrinfo(host, None, family, socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError) as error:
        raise StartError(f"'{host}' is no address of this machine ({error}); choose another with --host") from error


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def parse_arguments(arguments: list[str]) -> tuple[Home, PlatformSettings]:
    """Return home and settings: flags over environment over defaults. Raise StartError."""
    parser = argparse.ArgumentParser(prog="python -m serve.platform", description=__doc__)
    parser.add_argument("--home", type=Path)
    for flag, kind in (("--host", str), ("--port", int), ("--admin-port", int), ("--driver", str)):
        parser.add_argument(flag, type=kind)
    given = vars(parser.parse_args(arguments))
    try:
        home = Home(given.pop("home"))
    except OSError as error:
        raise StartError(f"No home for the platform: {error.strerror}") from error
    try:
        settings = PlatformSettings(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        problems = "; ".join(f"SERVE_{str(item['loc'][0]).upper()}: {item['msg']}" for item in error.errors())
        raise StartError(f"Settings are invalid: {problems}") from error
    return home, settings


def expected_sentence(error: BaseException, home: Home | None) -> str | None:
    """Return the sentence of an error that has a remedy, also where a task group wrapped it; None for others."""
    if isinstance(error, BaseExceptionGroup):
        sentences = [expected_sentence(inner, home) for inner in error.exceptions]
        return "; ".join(dict.fromkeys(filter(None, sentences))) if all(sentences) else None
    if isinstance(error, OSError) and home is not None and str(error.filename).startswith(str(home.path)):
        return home.unusable(error)
    return str(error) if isinstance(error, _EXPECTED) else None


def main(arguments: list[str] | None = None) -> int:
    if sys.platform != "linux":
        print("ServeZero's platform runs on Linux only: it is built on fork, pidfd and cgroups", file=sys.stderr)  # noqa: T201
        return 1
    home: Home | None = None
    try:
        home, settings = parse_arguments(sys.argv[1:] if arguments is None else arguments)
        logs.configure(settings.log_level)
        with locked(home):
            sockets, urls = bind(settings)
            uvloop.run(run(home, settings, sockets, urls))
    except Exception as error:
        sentence = expected_sentence(error, home)
        if sentence is None:
            raise
        print(sentence, file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
