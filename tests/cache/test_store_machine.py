"""Any sequence of calls: what is pinned stays whole, used never passes the budget, and disk and index agree."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cache.index import HOLD_S
from cache.store import Pin
from serve.core.clock import VirtualClock
from serve.core.errors import Conflict, IntegrityError, NotFound, StorageFull
from tests.cache.harness import (
    bring,
    disk_bytes,
    evict,
    has,
    leftovers,
    manifest_of,
    models,
    open_store,
    put,
    read_back,
)

BUDGET_BYTES = 60
CONTENTS = {name: name.encode() * size for name, size in zip("abcdef", (5, 10, 15, 20, 25, 30), strict=True)}
_MODELS = st.sets(st.sampled_from("abcdef"), min_size=1, max_size=3).map(
    lambda names: {f"dir/{name}": CONTENTS[name] for name in sorted(names)}
)


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="store-"))
        self.clock = VirtualClock()
        self.store = open_store(self.root, BUDGET_BYTES, self.clock)
        self.runner = asyncio.Runner()
        self.pins: list[tuple[str, Pin]] = []
        self.published: dict[str, dict[str, bytes]] = {}

    def teardown(self) -> None:
        self.runner.close()
        asyncio.set_event_loop(None)
        shutil.rmtree(self.root)

    @property
    def pinned(self) -> Counter[str]:
        return Counter(digest for digest, _ in self.pins)

    @rule(files=_MODELS)
    def publish(self, files: dict[str, bytes]) -> None:
        digest = manifest_of(files).digest
        was_here = has(self.store, digest)
        try:
            self.runner.run(bring(self.store, files))
        except StorageFull:
            assert not was_here
            return
        self.published[digest] = files

    @rule(name=st.sampled_from("abcdef"))
    def put_without_publishing(self, name: str) -> None:
        try:
            self.runner.run(put(self.store, CONTENTS[name]))
        except StorageFull as error:
            figures = error.details
        else:
            return
        assert figures["used_bytes"] + figures["needed_bytes"] > BUDGET_BYTES

    @rule(data=st.data())
    @precondition(lambda self: bool(models(self.store)))
    def pin(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(models(self.store)))
        self.pins.append((model.digest, self.store.pin(model.digest)))

    @rule(data=st.data())
    @precondition(lambda self: self.pins)
    def release(self, data: st.DataObject) -> None:
        _, pin = self.pins.pop(data.draw(st.integers(0, len(self.pins) - 1)))
        pin.release()
        pin.release()

    @rule(needed_bytes=st.integers(1, BUDGET_BYTES))
    def evict(self, needed_bytes: int) -> None:
        before_bytes = self.store.used_bytes
        try:
            freed_bytes = self.runner.run(evict(self.store, needed_bytes))
        except StorageFull:
            assert self.store.used_bytes == before_bytes
            return
        assert freed_bytes == before_bytes - self.store.used_bytes >= needed_bytes

    @rule(data=st.data())
    @precondition(lambda self: self.published)
    def delete(self, data: st.DataObject) -> None:
        digest = data.draw(st.sampled_from(sorted(self.published)))
        try:
            self.runner.run(self.store.delete(digest))
        except Conflict:
            assert self.pinned[digest]
            return
        assert not has(self.store, digest)

    @rule()
    def let_uploads_expire(self) -> None:
        self.clock.advance(HOLD_S + 1)

    @rule(data=st.data())
    @precondition(lambda self: bool(models(self.store)))
    def damage_and_verify(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(models(self.store)))
        file = data.draw(st.sampled_from(sorted(model.path.glob("dir/*"))))
        file.chmod(0o644)
        file.write_bytes(b"!" * file.stat().st_size)
        try:
            self.runner.run(self.store.verify(model.digest))
        except IntegrityError as error:
            gone = set(error.details["models"])
        else:
            raise AssertionError("damage was not noticed")
        for digest, pin in self.pins:
            if digest in gone:
                pin.release()
        self.pins = [(digest, pin) for digest, pin in self.pins if digest not in gone]

    @rule()
    def open_again(self) -> None:
        """As after a restart: the user of the store takes its pins again."""
        self.store = open_store(self.root, BUDGET_BYTES, self.clock)
        self.pins = [(digest, self.store.pin(digest)) for digest, _ in self.pins]

    @invariant()
    def used_stays_within_the_budget_and_is_what_the_disk_holds(self) -> None:
        assert self.store.used_bytes <= BUDGET_BYTES
        assert self.store.used_bytes == disk_bytes(self.root)
        assert leftovers(self.root) == []

    @invariant()
    def what_is_here_is_whole_and_what_is_pinned_is_here(self) -> None:
        here = {model.digest: model for model in models(self.store)}
        assert set(self.pinned) <= here.keys()
        for digest, model in here.items():
            assert read_back(model.path) == self.published[digest]
        on_disk = {path.name for path in (self.root / "models").iterdir()}
        assert on_disk == here.keys()

    @invariant()
    def what_is_not_here_cannot_be_pinned(self) -> None:
        for digest in self.published:
            if not has(self.store, digest):
                try:
                    self.store.pin(digest)
                except NotFound:
                    continue
                raise AssertionError("a model that is not here was pinned")


StoreMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestStoreMachine = StoreMachine.TestCase
