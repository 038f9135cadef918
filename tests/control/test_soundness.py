"""Damaged models are found before and beside replicas, and a failure makes them be read again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autoscaler.drivers.base import DriverError, ReplicaObserver, StartedReplica
from cache.store import ModelStore
from serve.control.soundness import SoundModels
from serve.core.events import Event, ExitReason, LoadOrder
from serve.core.ids import ReplicaId
from serve.core.lifecycle import Lifecycle
from serve.core.scaling import Exited
from tests.billing.test_journal_faults import no_descriptors_left
from tests.cache.harness import bring, open_store
from tests.control.bench import until


class Driver:
    """Starts nothing, and remembers who would have listened."""

    def __init__(self) -> None:
        self.observers: list[ReplicaObserver] = []

    async def start(self, order: LoadOrder, observer: ReplicaObserver, log_file: Path) -> StartedReplica:
        self.observers.append(observer)
        return StartedReplica(1, None)  # type: ignore[arg-type]

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    def drain(self, replica_id: ReplicaId) -> None: ...

    def kill(self, replica_id: ReplicaId, reason: ExitReason) -> None: ...


class Observer:
    def __init__(self) -> None:
        self.exited: list[Exited] = []

    def replica_event(self, replica_id: ReplicaId, event: Event) -> None: ...

    def replica_exited(self, exited: Exited) -> None:
        self.exited.append(exited)


class Site:
    def __init__(self, store: ModelStore, lifecycle: Lifecycle) -> None:
        self.store = store
        self.driver = Driver()
        self.lost: list[str] = []
        self.sound = SoundModels(self.driver, store, lifecycle, self.lost.extend)

    async def start(self, folder: Path) -> Observer:
        observer = Observer()
        order: Any = LoadOrder(ReplicaId("m-r1-x"), "m", 1, str(folder), "m", "onnx", 1, 1, {})
        await self.sound.start(order, observer, Path("/dev/null"))
        return observer


def rot(path: Path) -> None:
    """Change a byte and nothing that a look could notice."""
    before = path.stat()
    path.chmod(0o644)
    path.write_bytes(b"X" + path.read_bytes()[1:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


async def test_a_model_is_read_once_beside_its_first_replica_and_rot_is_put_aside(tmp_path: Path) -> None:
    async with Lifecycle() as lifecycle:
        site = Site(open_store(tmp_path), lifecycle)
        model = await bring(site.store, {"m": b"weights"})
        rot(model.path / "m")
        await site.start(model.path)
        await until(lambda: bool(site.lost))
        assert site.lost == [model.digest]
        assert not model.path.exists()


async def test_after_a_replica_that_failed_to_load_the_model_is_read_again(tmp_path: Path) -> None:
    async with Lifecycle() as lifecycle:
        site = Site(open_store(tmp_path), lifecycle)
        model = await bring(site.store, {"m": b"weights"})
        await site.start(model.path)
        await asyncio.sleep(0.1)
        rot(model.path / "m")
        observer = await site.start(model.path)
        await asyncio.sleep(0.1)
        assert site.lost == [], "it was read since the start, and looks as it did"
        site.driver.observers[-1].replica_exited(Exited(ReplicaId("r"), ExitReason.LOAD_FAILED, 1, 1, None, "no"))
        assert len(observer.exited) == 1
        await site.start(model.path)
        await until(lambda: bool(site.lost))


async def test_a_file_that_was_written_to_stops_the_start_unless_its_bytes_are_right(tmp_path: Path) -> None:
    async with Lifecycle() as lifecycle:
        site = Site(open_store(tmp_path), lifecycle)
        model = await bring(site.store, {"m": b"weights", "n": b"more"})
        (model.path / "n").chmod(0o644)
        (model.path / "n").write_bytes(b"more")
        await site.start(model.path)
        assert (model.path / "n").stat().st_mtime_ns == 1_000_000_000
        (model.path / "m").chmod(0o644)
        (model.path / "m").write_bytes(b"WEIGHTS")
        with pytest.raises(DriverError, match="deploy the model again"):
            await site.start(model.path)
        assert site.lost == [model.digest]


async def test_without_descriptors_a_start_fails_and_nothing_is_put_aside(tmp_path: Path) -> None:
    async with Lifecycle() as lifecycle:
        site = Site(open_store(tmp_path), lifecycle)
        model = await bring(site.store, {"m": b"weights"})
        (model.path / "m").chmod(0o644)
        (model.path / "m").write_bytes(b"weights")
        await asyncio.sleep(0)
        with no_descriptors_left(), pytest.raises(DriverError, match="Too many open files"):
            await site.start(model.path)
        assert site.lost == []
        await site.start(model.path)


def write_into(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(b"WEIGHTS")


def cut(path: Path) -> None:
    path.chmod(0o644)
    os.truncate(path, 3)


def link_elsewhere(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def put_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [write_into, cut, Path.unlink, link_elsewhere, put_a_folder])
async def test_no_replica_starts_from_a_file_that_was_tampered_with(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    async with Lifecycle() as lifecycle:
        site = Site(open_store(tmp_path), lifecycle)
        model = await bring(site.store, {"m": b"weights"})
        damage(model.path / "m")
        with pytest.raises(DriverError, match="deploy the model again"):
            await site.start(model.path)
        assert site.driver.observers == []
        assert site.lost == [model.digest]
        again = await bring(site.store, {"m": b"weights"})
        await site.start(again.path)
