"""Logs of replicas that ended do not pile up."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from autoscaler.old_logs import ENDS_BETWEEN, KEPT, OldLogs
from tests.autoscaler.world import a_world


def write(folder: Path, count: int, first: int = 0) -> list[Path]:
    """Write logs, one older than the next."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"digits-r1-{number:08d}.log" for number in range(first, first + count)]
    for number, path in enumerate(paths, first):
        path.touch()
        os.utime(path, ns=(number, number))
    return paths


def test_the_newest_logs_stay_and_those_of_replicas_that_live(tmp_path: Path) -> None:
    paths = write(tmp_path / "digits", 3 * KEPT)
    OldLogs(tmp_path).ended("digits", {paths[0].stem})
    assert sorted((tmp_path / "digits").iterdir()) == [paths[0], *paths[-KEPT:]]


def test_logs_stay_few_however_many_replicas_come_and_go(tmp_path: Path) -> None:
    logs = OldLogs(tmp_path)
    for number in range(500):
        write(tmp_path / "digits", 1, first=number)
        logs.ended("digits", set())
        assert len(list((tmp_path / "digits").iterdir())) <= KEPT + ENDS_BETWEEN


def test_a_folder_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    OldLogs(tmp_path).ended("digits", set())


@pytest.mark.looptime
async def test_a_removed_deployment_leaves_no_series_behind(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = world.add(min=1)
        await asyncio.sleep(1)
        assert world.metrics.exposition(0).count(b'"digits"')
        await world.autoscaler.remove(key)
        assert not world.metrics.exposition(0).count(b'"digits"')
