"""What a kill leaves in a journal, truthfully: torn tails, and records whose answers may not have left."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from billing.journal import journal_files

# All answers of one read share their time, and are written at once, before they leave: only those of the last write of
# a writer that was killed can have a record and no answer.
_LAST_REQUESTS = """
    SELECT requests.writer, id, last_ns FROM main.requests
    JOIN (SELECT writer, max(mono_ns) AS last_ns FROM main.requests WHERE writer IN main.gone GROUP BY writer) AS lasts
    ON requests.writer = lasts.writer AND mono_ns = last_ns ORDER BY requests.rowid"""
_MACHINE = "SELECT writer, max(mono_ns), max(ended) FROM main.machine GROUP BY writer"


def maybe_unsent(
    connection: sqlite3.Connection, until_mono_ns: Mapping[str, int], abandoned: set[str]
) -> dict[str, list[str]]:
    """Return {writer: ids} of requests that are recorded, while nobody knows whether their answer left.

    At most those whose answers were written to the journal last before a kill, and none where a later record shows that
    the writer went on. `abandoned`: writers that left lives open, by which older journals show a kill.
    """
    machine = {writer: (mono_ns, bool(ended)) for writer, mono_ns, ended in connection.execute(_MACHINE)}
    found: defaultdict[str, list[str]] = defaultdict(list)
    for writer, request_id, last_ns in connection.execute(_LAST_REQUESTS):
        until_ns, ended = machine.get(writer, (0, writer not in abandoned))
        if not ended and max(until_ns, until_mono_ns.get(writer, 0)) <= last_ns:
            found[writer].append(request_id)
    return dict(found)


def torn_tails(connection: sqlite3.Connection, journal: Path, limits: dict[tuple[str, str], int]) -> Iterator[str]:
    """Yield a sentence for each journal file of an ended writer whose last bytes are no whole line."""
    gone = {writer for (writer,) in connection.execute("SELECT writer FROM main.gone")}
    for writer, file, path in journal_files(journal):
        torn_bytes = path.stat().st_size - limits.get((writer, file), 0)
        if writer in gone and torn_bytes:
            yield f"{writer}/{file}: its last {torn_bytes} bytes are an incomplete record; its writer was killed"
