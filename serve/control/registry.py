"""The registry: which deployments exist, their retained revisions, and where the traffic goes.

Everything is in memory; SQLite makes it survive. A change is written first and shown after, so that what readers see
is always on disk.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from serve.control import database
from serve.core.errors import IntegrityError, NotFound, UnknownModel, UnknownVersion
from serve.core.ids import RevisionKey
from serve.core.revision import Revision, Signature
from serve.core.spec import DeploymentSpec

T = TypeVar("T")
Weights = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class StoredRevision:
    """A revision that answered, and what its publishing printed."""

    revision: Revision
    size_bytes: int
    receipt: dict[str, Any]
    created_wall_ns: int
    source: str = ""
    """URL that its model came from, where it can be fetched again; empty for an upload."""

    @property
    def number(self) -> int:
        return self.revision.key.number


@dataclass(frozen=True, slots=True)
class Deployment:
    """Replaced whole on every change."""

    name: str
    created_wall_ns: int
    weights: Weights
    """(revision number, weight ≥ 1), never empty."""
    revisions: dict[int, StoredRevision]
    """Retained revisions, oldest first."""

    @property
    def current(self) -> StoredRevision:
        """The revision with most traffic, the newest of them."""
        return self.revisions[max(self.weights, key=lambda pair: (pair[1], pair[0]))[0]]

    def revision(self, number: int) -> StoredRevision:
        """Return a retained revision. Raise UnknownVersion."""
        try:
            return self.revisions[number]
        except KeyError:
            kept = ", ".join(map(str, self.revisions))
            raise UnknownVersion(f"'{self.name}' has no revision {number}; retained are {kept}") from None


class Registry:
    """Deployments on disk and in memory.

    `deployments` is owned by the event loop. The connection is owned by the one thread of `_writer`: a commit waits
    for the disk, and the loop also serves requests.
    """

    def __init__(self, path: Path, model_dir: Callable[[str], Path], keep_revisions: int = 10) -> None:
        self.deployments: dict[str, Deployment] = {}
        self._path = path
        self._model_dir = model_dir
        self._keep_revisions = keep_revisions
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="registry")
        self._connection: sqlite3.Connection | None = None

    def open(self) -> None:
        """Open or create the file and read all of it. Raise ServeError with the remedy."""
        self._connection = database.connect(self._path)
        try:
            with database.readable_errors(self._path):
                self.deployments = {name: self._read(name, created) for name, created in self._rows_of_deployments()}
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(
                f"{self._path} holds a deployment that this version of servezero cannot read ({error}); install the "
                "version that wrote it, or use another SERVE_HOME"
            ) from error

    def close(self) -> None:
        """Wait for a write that runs, then close the file."""
        self._writer.shutdown()
        if self._connection is not None:
            database.close(self._connection, self._path)
            self._connection = None

    def get(self, name: str) -> Deployment:
        """Return the deployment. Raise UnknownModel."""
        try:
            return self.deployments[name]
        except KeyError:
            raise UnknownModel(f"no deployment is named '{name}'; `serve ls` lists them") from None

    async def reserve_number(self, name: str) -> int:
        """Return a revision number that was never given before, not even to a deleted deployment of that name.

        A publish that fails leaves a gap: its replicas have logs and costs under that number.
        """

        def write(connection: sqlite3.Connection) -> int:
            row = connection.execute(
                "INSERT INTO numbers VALUES (?, 1) ON CONFLICT DO UPDATE SET last = last + 1 RETURNING last", (name,)
            ).fetchone()
            return int(row[0])

        return await self._write(write, lambda number: number)

    async def add(self, stored: StoredRevision, committed: Callable[[list[StoredRevision]], None]) -> None:
        """Write a revision that takes all traffic from now on; drop the oldest ones beyond `keep_revisions`.

        `committed` gets the dropped revisions. It is called on the loop in the same turn in which the change shows,
        even if the caller was cancelled while the disk wrote: this is the point of no return of a publish.
        """
        name = stored.revision.key.name
        known = self.deployments.get(name)
        created_wall_ns = known.created_wall_ns if known else stored.created_wall_ns
        weights: Weights = ((stored.number, 1),)
        dropped = self._surplus(known) if known else []

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR IGNORE INTO deployments VALUES (?, ?)", (name, created_wall_ns))
            _insert(connection, stored)
            for old in dropped:
                connection.execute("DELETE FROM revisions WHERE name = ? AND number = ?", (name, old.number))
            _replace_traffic(connection, name, weights)

        def show(_: None) -> None:
            now = self.deployments.get(name)
            revisions = {**(now.revisions if now else {}), stored.number: stored}
            for old in dropped:
                del revisions[old.number]
            self.deployments[name] = Deployment(name, created_wall_ns, weights, revisions)
            committed(dropped)

        await self._write(write, show)

    def _surplus(self, known: Deployment) -> list[StoredRevision]:
        """Return what must go when one more comes: the oldest, but never what runs until now."""
        served = {number for number, _ in known.weights}
        others = [stored for number, stored in known.revisions.items() if number not in served]
        return others[: max(0, len(known.revisions) + 1 - self._keep_revisions)]

    async def set_traffic(self, name: str, weights: Weights, committed: Callable[[Deployment], None]) -> None:
        """Point the deployment at retained revisions. `committed`: as for `add`. Raise UnknownModel, UnknownVersion."""
        for number, _ in weights:
            self.get(name).revision(number)

        def show(_: None) -> None:
            self.deployments[name] = dataclasses.replace(self.get(name), weights=weights)
            committed(self.deployments[name])

        await self._write(functools.partial(_replace_traffic, name=name, weights=weights), show)

    async def set_memory(self, key: RevisionKey, memory_bytes: int) -> None:
        """Write a revision's new high-water mark. Does nothing for a revision that is gone."""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE revisions SET memory_bytes = ? WHERE name = ? AND number = ?", (memory_bytes, *key)
            )

        def show(_: None) -> None:
            deployment = self.deployments.get(key.name)
            stored = deployment.revisions.get(key.number) if deployment else None
            if deployment is None or stored is None:
                return
            revision = dataclasses.replace(stored.revision, memory_bytes=memory_bytes)
            revisions = {**deployment.revisions, key.number: dataclasses.replace(stored, revision=revision)}
            self.deployments[key.name] = dataclasses.replace(deployment, revisions=revisions)

        await self._write(write, show)

    async def delete(self, name: str, committed: Callable[[Deployment], None]) -> None:
        """Forget the deployment and its revisions; its numbers stay taken. `committed`: as for `add`."""
        self.get(name)

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM deployments WHERE name = ?", (name,))

        def show(_: None) -> None:
            committed(self.deployments.pop(name))

        await self._write(write, show)

    async def _write(self, write: Callable[[sqlite3.Connection], T], show: Callable[[T], Any]) -> T:
        future = asyncio.get_running_loop().run_in_executor(self._writer, self._transaction, write)
        cancelled: asyncio.CancelledError | None = None
        while not future.done():
            try:
                await asyncio.wait({future})
            except asyncio.CancelledError as error:
                cancelled = error  # the disk writes on: what becomes true must also be shown
        try:
            result = future.result()
            show(result)
            return result
        finally:
            if cancelled is not None:
                raise cancelled

    def _transaction(self, write: Callable[[sqlite3.Connection], T]) -> T:
        assert self._connection is not None, "the registry is not open"
        with database.transaction(self._connection, self._path) as connection:
            return write(connection)

    def _rows_of_deployments(self) -> list[tuple[str, int]]:
        assert self._connection is not None
        return self._connection.execute("SELECT name, created_wall_ns FROM deployments ORDER BY name").fetchall()

    def _read(self, name: str, created_wall_ns: int) -> Deployment:
        assert self._connection is not None
        traffic = self._connection.execute("SELECT number, weight FROM traffic WHERE name = ? ORDER BY number", (name,))
        rows = self._connection.execute(f"SELECT {_COLUMNS} FROM revisions WHERE name = ? ORDER BY number", (name,))  # noqa: S608
        revisions = {stored.number: stored for stored in map(self._stored, rows)}
        return Deployment(name, created_wall_ns, tuple((number, weight) for number, weight in traffic), revisions)

    def _stored(self, row: tuple[Any, ...]) -> StoredRevision:
        (
            name,
            number,
            created_wall_ns,
            spec,
            digest,
            size_bytes,
            model_file,
            threads,
            memory,
            signature,
            receipt,
            source,
        ) = row
        revision = Revision(
            key=RevisionKey(name, number),
            spec=DeploymentSpec.model_validate_json(spec),
            digest=digest,
            model_dir=self._folder(digest),
            model_file=model_file,
            threads=threads,
            memory_bytes=memory,
            signature=Signature.from_json(json.loads(signature)),
        )
        return StoredRevision(revision, size_bytes, json.loads(receipt), created_wall_ns, source)

    def _folder(self, digest: str) -> str:
        try:
            return str(self._model_dir(digest))
        except NotFound:
            return ""  # the store lost it: nobody can be started from it, and `Deployments.restore` says so


_COLUMNS = (
    "name, number, created_wall_ns, spec, digest, size_bytes, model_file, threads, memory_bytes, signature, receipt, "
    "source"
)


def _insert(connection: sqlite3.Connection, stored: StoredRevision) -> None:
    revision = stored.revision
    assert revision.signature is not None, "only a revision whose model was loaded is written"
    values = (
        *revision.key,
        stored.created_wall_ns,
        revision.spec.model_dump_json(),
        revision.digest,
        stored.size_bytes,
        revision.model_file,
        revision.threads,
        revision.memory_bytes,
        json.dumps(revision.signature.as_json()),
        json.dumps(stored.receipt),
        stored.source,
    )
    marks = ", ".join("?" * len(values))
    connection.execute(f"INSERT INTO revisions ({_COLUMNS}) VALUES ({marks})", values)  # noqa: S608


def _replace_traffic(connection: sqlite3.Connection, name: str, weights: Weights) -> None:
    connection.execute("DELETE FROM traffic WHERE name = ?", (name,))
    connection.executemany(
        "INSERT INTO traffic VALUES (?, ?, ?)", [(name, number, weight) for number, weight in weights]
    )
