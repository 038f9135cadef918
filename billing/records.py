"""The journal's records, format v1: what each line says. Every field with its unit stands in docs/journal.md.

A builder returns one finished line: a JSON object whose last key is `crc`, 8 hex digits of the CRC-32 of all bytes
before `,"crc"`, and a newline. `decode` is the way back.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from zlib import crc32

import orjson

from billing.attribute import Parts
from billing.machine import MachineState
from billing.prices import Prices

VERSION = 1
_CRC_BYTES = len(b',"crc":"00000000"}')
_MIB = 1 << 20


class RecordError(ValueError):
    """The bytes are no record: torn, altered or not ours. The text says which."""


class Origin(NamedTuple):
    """Who writes: stands in every record, so that each can be read alone."""

    writer: str
    """`serve.core.ids.new_writer_id()`: one life of one journal-writing process."""
    boot: str
    """Kernel boot id: `mono_ns` of different boots cannot be compared."""


@dataclass(frozen=True, slots=True)
class Life:
    """What stays the same through one replica's life. Built from `ReplicaInfo` and the deployment's labels."""

    replica: str
    deployment: str
    revision: int
    cores: int
    memory_mib: int
    """Granted memory; `mebibytes()` of `ReplicaInfo.memory_bytes`."""
    assigned_mono_ns: int
    assigned_wall_ns: int
    labels: dict[str, str] = field(default_factory=dict)
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class Used:
    """What the kernel counted of a replica's process. It is held against what is charged; nothing is charged by it."""

    cpu_us: int
    peak_rss_mib: int
    """High-water mark of what it had mapped and present, shared pages included; rounded down."""
    anon_mib: int | None = None
    """Anonymous memory when it was looked at, pages shared with the zygote included; rounded down. None at the end."""


def mebibytes(size_bytes: int) -> int:
    """Return a size in whole MiB, rounded up: the unit in which memory is charged."""
    return -(-size_bytes // _MIB)


class RequestLines:
    """Builds the request records of one replica's life. About 2.5 µs a record: it runs on the hot path."""

    __slots__ = ("_head",)

    def __init__(self, life: Life, origin: Origin) -> None:
        self._head = orjson.dumps(
            {
                "kind": "request",
                "v": VERSION,
                "writer": origin.writer,
                "boot": origin.boot,
                "deployment": life.deployment,
                "revision": life.revision,
                "replica": life.replica,
                "cores": life.cores,
                "memory_mib": life.memory_mib,
            }
        )[:-1]

    def line(
        self,
        *,
        id: str,
        mono_ns: int,
        wall_ns: int,
        status: int,
        charged: bool,
        reason: str | None,
        rows: int,
        batch_rows: int,
        queue_us: int,
        inside_us: int,
        cold_us: int,
        busy_us: int,
        infer_us: int,
        bytes_in: int,
        bytes_out: int,
        cold: bool,
        price: str,
        client_id: str | None = None,
        trace_id: str | None = None,
    ) -> bytes:
        """Return the record of one request that reached this replica; `mono_ns`, `wall_ns`: its end.

        `reason` says why it is not charged (`error`, `cancelled`, `replica_lost`, …), None where it is. An attempt
        without usage has `busy_us` and `cold_us` 0: its time is in the life's lost part. `cold`: it waited for a cold
        start. `price`: `Prices.version`. `queue_us` and `inside_us` before its end, it came.
        """
        record = {
            "id": id,
            "mono_ns": mono_ns,
            "wall_ns": wall_ns,
            "status": status,
            "charged": charged,
            "reason": reason,
            "rows": rows,
            "batch_rows": batch_rows,
            "queue_us": queue_us,
            "inside_us": inside_us,
            "cold_us": cold_us,
            "busy_us": busy_us,
            "infer_us": infer_us,
            "bytes_in": bytes_in,
            "bytes_out": bytes_out,
            "cold": cold,
            "price": price,
            "client_id": client_id,
            "trace_id": trace_id,
        }
        try:
            rest = orjson.dumps(record)
        except TypeError:
            rest = orjson.dumps(plain(record))
        return _sealed(self._head + b"," + rest[1:-1])


def checkpoint(
    life: Life,
    origin: Origin,
    parts: Parts,
    *,
    mono_ns: int,
    wall_ns: int,
    bounded: bool = False,
    used: Used | None = None,
) -> bytes:
    """Return the state of an open life. The first is written at assignment, so that a crash can close it."""
    record = _life_record("checkpoint", f"{life.replica}@{mono_ns}", life, origin, parts, mono_ns, wall_ns)
    return encode(record | _doubts(bounded, used))


def segment(
    life: Life,
    origin: Origin,
    parts: Parts,
    *,
    part: str,
    mono_ns: int,
    wall_ns: int,
    exit_reason: str | None = None,
    estimated: bool = False,
    bounded: bool = False,
    used: Used | None = None,
) -> bytes:
    """Return the record written when a part of a life closes: `part` is `cold`, `run` or `drain`.

    `parts` is cumulative from assignment to `mono_ns`. `exit_reason` (an `events.ExitReason`) is given exactly in the
    last one, whatever its part: it closes the life. `estimated`, `bounded`: as in `LifeAccount`.
    """
    record = _life_record("segment", f"{life.replica}/{part}", life, origin, parts, mono_ns, wall_ns)
    record |= {"part": part, "exit_reason": exit_reason, "estimated": estimated}
    return encode(record | _doubts(bounded, used))


def machine(state: MachineState, origin: Origin, *, mono_ns: int, wall_ns: int, ended: bool = False) -> bytes:
    """Return how the machine's time was used up to `mono_ns`: written at start, now and then, and at the end.

    `ended`: the platform closed its books; without that it was killed, or goes on.
    """
    head = _head("machine", f"{origin.writer}@{mono_ns}", origin, mono_ns, wall_ns)
    return encode(head | state._asdict() | {"ended": ended})


def price(prices: Prices, origin: Origin, *, mono_ns: int, wall_ns: int) -> bytes:
    """Return the record that a dated price is known to this writer: written at start and when the book changes."""
    head = _head("price", f"{origin.writer}:{prices.version}", origin, mono_ns, wall_ns)
    return encode(head | prices.as_record())


def writer(origin: Origin, gone: list[str], *, mono_ns: int, wall_ns: int) -> bytes:
    """Return a writer's first record. `gone`: writers whose processes have ended; their open lives are over."""
    return encode(_head("writer", origin.writer, origin, mono_ns, wall_ns) | {"pid": os.getpid(), "gone": gone})


def encode(record: dict[str, Any]) -> bytes:
    """Return `record` as a line. Values JSON cannot hold become text or null; they never break the line."""
    try:
        body = orjson.dumps(record)
    except TypeError:
        body = orjson.dumps(plain(record))
    return _sealed(body[:-1])


def decode(line: bytes) -> dict[str, Any]:
    """Return the record of one line without its newline; `crc` is left out. Raise RecordError."""
    body, tail = line[:-_CRC_BYTES], line[-_CRC_BYTES:]
    if tail[:8] != b',"crc":"' or tail[16:] != b'"}':
        raise RecordError("the line does not end in a checksum")
    if b"%08x" % crc32(body) != tail[8:16]:
        raise RecordError("the checksum does not match: the line was altered")
    try:
        record: dict[str, Any] = orjson.loads(body + b"}")
    except orjson.JSONDecodeError as error:
        raise RecordError(f"not JSON: {error}") from error
    if record.get("v") != VERSION:
        raise RecordError(f"record format {record.get('v')!r}; this program reads {VERSION}")
    return record


def plain(value: Any) -> Any:
    """Return `value` with what orjson refuses (huge integers, lone surrogates, foreign types) as text."""
    if isinstance(value, dict):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 64:
        return value
    return str(value).encode("utf-8", "backslashreplace").decode()


def _sealed(body: bytes) -> bytes:
    return b'%b,"crc":"%08x"}\n' % (body, crc32(body))


def _head(kind: str, id: str, origin: Origin, mono_ns: int, wall_ns: int) -> dict[str, Any]:
    return {
        "kind": kind,
        "v": VERSION,
        "id": id,
        "writer": origin.writer,
        "boot": origin.boot,
        "mono_ns": mono_ns,
        "wall_ns": wall_ns,
    }


def _life_record(
    kind: str, id: str, life: Life, origin: Origin, parts: Parts, mono_ns: int, wall_ns: int
) -> dict[str, Any]:
    return _head(kind, id, origin, mono_ns, wall_ns) | {
        "deployment": life.deployment,
        "revision": life.revision,
        "replica": life.replica,
        "labels": life.labels,
        "cores": life.cores,
        "memory_mib": life.memory_mib,
        "assigned_mono_ns": life.assigned_mono_ns,
        "assigned_wall_ns": life.assigned_wall_ns,
        "pid": life.pid,
        **parts._asdict(),
    }


def _doubts(bounded: bool, used: Used | None) -> dict[str, Any]:
    """Return what an auditor holds against the parts of a life."""
    return {
        "bounded": bounded,
        "cpu_us": used.cpu_us if used is not None else None,
        "peak_rss_mib": used.peak_rss_mib if used is not None else None,
        "anon_mib": used.anon_mib if used is not None else None,
    }
