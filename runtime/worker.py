"""The life of one replica: load the model, report, serve until drained or left."""

from __future__ import annotations

import gc
import logging
import signal
import socket
import time

from runtime.engines.base import Engine, EngineError, Loaded, OutOfMemory, open_engine
from runtime.memory import read_memory
from runtime.replica import Replica
from runtime.wire import FrameReader, RawFrame
from serve.core import logs
from serve.core.events import (
    Drained,
    Event,
    EventError,
    Failed,
    LoadOrder,
    Phase,
    PhaseDone,
    Ready,
    decode_load,
    encode_event,
)
from serve.core.frames import FrameError, Kind, pack

log = logging.getLogger(__name__)


def run(sock: socket.socket, *, started_ns: int | None = None, drain_signal: int | None = None) -> int:
    """Be a replica on a connected, blocking stream socket until drained or left. Return the exit code.

    The first frame must be LOAD. `started_ns`: monotonic time at which this replica was ordered.
    `drain_signal`: a signal that means the same as a DRAIN frame, once the model is loaded.
    Exit code 0: drained, or the other side closed the socket. 1: the model cannot be loaded (a `Failed` event says
    why), or the other side broke the protocol.
    """
    entered_ns = time.monotonic_ns()
    logs.configure("INFO")
    reader = FrameReader(sock)
    try:
        order, early = _await_order(reader)
        if order is None:
            _send(sock, Drained(time.monotonic_ns(), total_busy_ns=0))
            return 0
        engine, loaded = _load(sock, order, entered_ns if started_ns is None else started_ns)
        try:
            replica = Replica(sock, order, engine, loaded)
            if drain_signal is not None:
                signal.signal(drain_signal, lambda *_: replica.drain())
            _log_ready(order, loaded, time.monotonic_ns() - entered_ns)
            code = replica.serve(reader, early)
            log.info("leaving: %d requests answered in %.3f s of work", replica.answered, replica.busy_s)
            return code
        finally:
            engine.close()
    except EngineError as error:
        _send(sock, Failed(time.monotonic_ns(), error.code, str(error)))
    except EventError as error:
        _send(sock, Failed(time.monotonic_ns(), EngineError.code, str(error)))
    except FrameError as error:
        log.error("the other side broke the protocol: %s", error)
    except (ConnectionError, TimeoutError):
        return 0  # as good as the end of the stream: nobody is there to hear an answer
    return 1


def _log_ready(order: LoadOrder, loaded: Loaded, taken_ns: int) -> None:
    log.info(
        "%s loaded by %s %s in %.1f ms",
        order.model_file,
        order.engine,
        loaded.version,
        taken_ns / 1e6,
        extra={"replica": order.replica_id, "threads": order.threads},
    )


def _await_order(reader: FrameReader) -> tuple[LoadOrder | None, list[RawFrame]]:
    """Return the first order and what came with it; None for one that is drained without ever having a model.

    Raise FrameError, EventError, and ConnectionResetError at the end of the stream.
    """
    frames: list[RawFrame] | None = []
    while frames == []:
        frames = reader.read(wait=True)
    if frames is None:
        raise ConnectionResetError("closed before a model was ordered")
    kind, _, _, payload = frames[0]
    if kind == Kind.DRAIN:
        return None, []
    if kind != Kind.LOAD:
        raise FrameError(f"frame kind {kind} before LOAD")
    return decode_load(payload), frames[1:]


def _load(sock: socket.socket, order: LoadOrder, started_ns: int) -> tuple[Engine, Loaded]:
    """Load the model and report it. Raise EngineError.

    SPAWN lasts until the engine's library is imported: at once after a fork from a zygote that has it.
    """
    engine = open_engine(order.engine)
    start_ns = time.monotonic_ns()
    try:
        loaded = engine.load(order)
    except EngineError:
        raise
    except MemoryError as error:
        log.exception("no memory to load %s", order.model_file)
        raise OutOfMemory(
            f"'{order.model_file}' does not fit into the memory of this machine; "
            "give the replica more, or take a smaller model"
        ) from error
    except Exception as error:
        log.exception("engine %s failed to load %s", order.engine, order.model_file)
        raise EngineError(f"engine '{order.engine}' failed to load '{order.model_file}': {error!r:.500}") from error
    # What is alive now lives as long as the replica: keep it out of every later collection.
    gc.freeze()
    memory = read_memory()
    now_ns = time.monotonic_ns()
    _send(
        sock,
        PhaseDone(Phase.SPAWN, started_ns, start_ns),
        PhaseDone(Phase.MAP, start_ns, loaded.mapped_ns),
        PhaseDone(Phase.LOAD, loaded.mapped_ns, now_ns),
        Ready(
            at_ns=now_ns,
            platform=loaded.platform,
            engine_version=loaded.version,
            inputs=loaded.inputs,
            outputs=loaded.outputs,
            batchable=loaded.batchable,
            memory_bytes=memory.current_bytes,
            peak_memory_bytes=memory.peak_bytes,
        ),
    )
    return engine, loaded


def _send(sock: socket.socket, *events: Event) -> None:
    sock.sendall(b"".join([pack(Kind.EVENT, payload=encode_event(event)) for event in events]))
