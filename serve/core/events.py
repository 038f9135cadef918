"""Typed messages about a replica's life: what it is told to load, what it reports, how it ended.

They travel as JSON in LOAD and EVENT frames. Unknown keys are ignored, so that a newer replica can talk to an older
platform. Times are nanoseconds of the replica's CLOCK_MONOTONIC.

Standard library only: the runtime imports this module inside a user's own environment.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Phase(StrEnum):
    """Where the time of a cold start goes; one enum for timing headers, metrics, journal and `status`."""

    QUEUE = "queue"
    """Request head received until a replica was ordered (includes waiting for memory)."""
    SPAWN = "spawn"
    """Replica ordered until its own code runs (fork from the zygote, or exec)."""
    ASSIGN = "assign"
    """A model-less process takes the model (stem cells)."""
    FETCH = "fetch"
    """Bytes of the model brought to this machine's disk."""
    MAP = "map"
    """Model file opened and mapped or read."""
    LOAD = "load"
    """Engine session built."""
    WARMUP = "warmup"
    """First run on sample data, where a deployment asks for one."""
    INFER = "infer"
    """The first request itself, sent to the replica until its answer came back."""


class ExitReason(StrEnum):
    """Why a replica ended."""

    DRAINED = "drained"
    LOAD_FAILED = "load_failed"
    STOPPED = "stopped"
    """Killed on purpose by the platform (did not drain in time, or platform shutdown)."""
    EXECUTION_TIMEOUT = "execution_timeout"
    START_TIMEOUT = "start_timeout"
    OUT_OF_MEMORY = "out_of_memory"
    """Said only when the kernel's oom_kill counter moved."""
    CRASHED = "crashed"
    """Ended by itself: exit status other than 0, or a signal nobody here sent."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output. `datatype` is the Open Inference Protocol's (FP32, BYTES, …); -1 = variable size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """Everything a model-less process needs to become a replica of a revision."""

    replica_id: str
    name: str
    revision: int
    model_dir: str
    """Absolute path of the folder in the store that holds the model's files. Read-only."""
    model_file: str
    """Path of the model within `model_dir`."""
    engine: str
    threads: int = 1
    """Inference threads."""
    max_batch_rows: int = 32
    """Most rows the replica joins into one engine run; 1 = never batch."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Engine-specific, from the deployment's spec."""


@dataclass(frozen=True, slots=True)
class PhaseDone:
    phase: Phase
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded; requests may come. Everything the platform wants to know of the model is here."""

    at_ns: int
    platform: str
    """The protocol's platform string, such as `onnxruntime_onnx`."""
    engine_version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batchable: bool
    """All inputs and outputs have a variable first dimension, so that rows of several requests can be joined."""
    memory_bytes: int
    """Memory this replica alone holds now (its private dirty pages)."""
    peak_memory_bytes: int
    """Its high-water mark while loading."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The model cannot be loaded. The process exits after this."""

    at_ns: int
    code: str
    """Stable: model_invalid, model_unsupported, model_files_missing, out_of_memory, engine_missing, load_error."""
    message: str
    """One sentence for a person, with the remedy where there is one."""


@dataclass(frozen=True, slots=True)
class Drained:
    """Nothing is inside any more and nothing will be taken. The process exits 0 after this."""

    at_ns: int
    total_busy_ns: int


@dataclass(frozen=True, slots=True)
class Stats:
    """Sent when a replica becomes idle after work (at most once a second) and after its first answer."""

    at_ns: int
    total_busy_ns: int
    answered: int
    memory_bytes: int
    peak_memory_bytes: int


Event = PhaseDone | Ready | Failed | Drained | Stats

_EVENTS: dict[str, type[Any]] = {
    "phase": PhaseDone,
    "ready": Ready,
    "failed": Failed,
    "drained": Drained,
    "stats": Stats,
}
_EVENT_NAMES = {cls: name for name, cls in _EVENTS.items()}


class EventError(ValueError):
    """The bytes are no event. The connection cannot be trusted any further."""


_NOT_AN_EVENT = (ValueError, KeyError, TypeError, OverflowError, RecursionError)
_CHECKED = {"int": int, "str": str, "bool": bool, "dict[str, Any]": dict}


def encode_event(event: Event) -> bytes:
    return json.dumps({"event": _EVENT_NAMES[type(event)], **dataclasses.asdict(event)}).encode()


def decode_event(data: bytes | memoryview) -> Event:
    """Return the event in an EVENT payload. Raise EventError."""
    try:
        message = json.loads(bytes(data))
        cls = _EVENTS[message["event"]]
        event: Event = _build(cls, message)
    except _NOT_AN_EVENT as error:
        raise EventError(f"not an event: {error}") from error
    return event


def encode_load(order: LoadOrder) -> bytes:
    return json.dumps(dataclasses.asdict(order)).encode()


def decode_load(data: bytes | memoryview) -> LoadOrder:
    """Return the order in a LOAD payload. Raise EventError."""
    try:
        order: LoadOrder = _build(LoadOrder, json.loads(bytes(data)))
    except _NOT_AN_EVENT as error:
        raise EventError(f"not a load order: {error}") from error
    return order


def tensor_specs(items: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    """Return specs from their JSON form `[{"name", "datatype", "shape"}]`."""
    return tuple(
        TensorSpec(str(item["name"]), str(item["datatype"]), tuple(int(dim) for dim in item["shape"])) for item in items
    )


def _build(cls: type[Any], message: Any) -> Any:
    if not isinstance(message, dict):
        raise TypeError("not a JSON object")
    known = {field.name: _CHECKED.get(str(field.type)) for field in dataclasses.fields(cls)}
    values = {key: value for key, value in message.items() if key in known}
    for key, value in values.items():
        wanted = known[key]
        if wanted is not None and type(value) is not wanted:
            raise TypeError(f"{key} is not of type {wanted.__name__}")
    for key in ("inputs", "outputs"):
        if key in values:
            values[key] = tensor_specs(values[key])
    if cls is PhaseDone:
        values["phase"] = Phase(values["phase"])
    return cls(**values)
