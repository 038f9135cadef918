"""A child that kills itself, with SIGKILL, before each step that changes the store's folders, and looks at the result.

Run as a module with a working folder; prints one line per scenario: its name and how many steps it was killed at. The
steps are found with an audit hook, so that the store needs to know nothing of this test.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from cache.store import ModelStore
from serve.core.errors import IntegrityError
from tests.cache.harness import (
    bring,
    disk_bytes,
    evict,
    leftovers,
    manifest_of,
    models,
    open_store,
    read_back,
    sha256_of,
)

OLD = {"model.onnx": b"shared", "data/weights": b"old weights"}
NEW = {"model.onnx": b"shared", "data/weights": b"new weights", "empty": b""}
_STEPS = {"open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.chmod"}

Scenario = Callable[[ModelStore], Awaitable[None]]


async def _publish(store: ModelStore) -> None:
    await bring(store, NEW)


async def _evict(store: ModelStore) -> None:
    await evict(store, 1)


async def _delete(store: ModelStore) -> None:
    await store.delete(manifest_of(OLD).digest)


async def _put_aside(store: ModelStore) -> None:
    model = models(store)[0]
    damaged = model.path / "data/weights"
    damaged.chmod(0o644)
    damaged.write_bytes(b"OLD weights")
    try:
        await store.verify(model.digest)
    except IntegrityError:
        return
    raise AssertionError("damage was not noticed")


SCENARIOS: dict[str, Scenario] = {"publish": _publish, "evict": _evict, "delete": _delete, "put_aside": _put_aside}


def _kill_before(step: int, root: Path) -> None:
    steps = itertools.count()

    def is_ours(path: str) -> bool:
        return path.startswith(str(root)) or "/" not in path  # removing a tree names files within open folders

    def hook(event: str, args: tuple[object, ...]) -> None:
        if event in _STEPS and is_ours(str(args[0])) and next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _run(scenario: Scenario, step: int, root: Path) -> bool:
    """Return whether the scenario came to its end."""
    asyncio.run(bring(open_store(root), OLD))
    child = os.fork()
    if child == 0:
        store = open_store(root)
        _kill_before(step, root)
        asyncio.run(scenario(store))  # type: ignore[arg-type]
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFEXITED(status) or os.WTERMSIG(status) == signal.SIGKILL, status
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFEXITED(status)


async def _check(root: Path) -> None:
    """Whatever is visible is whole, and the store works on."""
    store = open_store(root)
    assert leftovers(root) == []
    assert store.used_bytes == disk_bytes(root), (store.used_bytes, disk_bytes(root))
    allowed = {manifest_of(files).digest: files for files in (OLD, NEW)}
    for model in models(store):
        assert read_back(model.path).keys() == allowed[model.digest].keys()
        try:
            await store.verify(model.digest)
        except IntegrityError:
            continue  # only where the scenario did the damage
        assert read_back(model.path) == allowed[model.digest]
    for files in (OLD, NEW):
        assert read_back((await bring(store, files)).path) == files
    for blob in (root / "blobs").iterdir():
        assert sha256_of(blob.read_bytes()) == blob.name


def main() -> None:
    work = Path(sys.argv[1])
    for name, scenario in SCENARIOS.items():
        for step in itertools.count():
            root = work / f"{name}-{step}"
            ended = _run(scenario, step, root)
            asyncio.run(_check(root))
            if ended:
                sys.stdout.write(f"{name} {step}\n")
                break


if __name__ == "__main__":
    main()
