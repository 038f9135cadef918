"""A replica with its model loaded: one blocking loop, no event loop, no threads of ours.

Take all that has come, join what fits into a batch, run it, answer; meanwhile the next batch gathers in the socket.
Answers leave in one system call when nothing is left to run, or before a run that would keep them a millisecond.

Every request gets exactly one answer with its usage, also one whose caller left before it was started (status 499):
the other side always knows what is inside, and the shares of all answers sum to the busy time.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import time

from runtime.batch import take_batch
from runtime.decode import InferRequest, RequestDecoder
from runtime.encode import AnswerEncoder, Body, WrongRows, error_body
from runtime.engines.base import Engine, InputRejected, Loaded
from runtime.memory import read_memory
from runtime.proof import BatchProof
from runtime.tensors import DATATYPES, Array, RequestRejected, join
from runtime.wire import ANSWER, ANSWER_HEAD_BYTES, REQUEST_HEAD, FrameReader, RawFrame, send_pieces
from serve.core.events import Drained, Event, LoadOrder, Stats, encode_event
from serve.core.frames import FLAG_END, FrameError, Kind, pack, unpack_request
from serve.core.meter import BusyMeter

log = logging.getLogger(__name__)

FLUSH_AFTER_NS = 1_000_000
"""Longest time a finished answer waits for others to leave with, if runs take as long as the last one."""

STATS_INTERVAL_NS = 1_000_000_000
_MEMORY_SHARE = 100
"""Reading memory may take one part in this many: the interval grows where it is slow (large mappings)."""

_RESPONSE = int(Kind.RESPONSE)
_U32 = 0xFFFF_FFFF

_CALLER_LEFT = RequestRejected("the caller left before the request was started", 499, "cancelled")
_EXPIRED = RequestRejected("Request timeout expired: it waited too long in the replica", 503, "queue_timeout")
_DRAINING = RequestRejected("the replica is draining; send the request again", 503, "draining")

_Refused = list[tuple[InferRequest, RequestRejected]]


class Replica:
    """Everything is owned by the process's main thread."""

    def __init__(self, sock: socket.socket, order: LoadOrder, engine: Engine, loaded: Loaded) -> None:
        self._sock = sock
        self._engine = engine
        self._loaded = loaded
        self._datatypes = {spec.name: DATATYPES[spec.datatype] for spec in loaded.inputs}
        self._decoder = RequestDecoder(loaded, order.name)
        self._encoder = AnswerEncoder(loaded, order.name, str(order.revision))
        self._max_batch_rows = order.max_batch_rows
        self._proof = BatchProof()
        self._meter = BusyMeter()
        self._waiting: list[InferRequest] = []
        """Inside and not started, in order of arrival."""
        self._incomplete: dict[int, bytearray] = {}
        """Requests by stream whose bodies are still coming: not inside yet."""
        self._is_draining = False
        self._is_ordered_out = False
        """The read half of the socket was shut on our side."""
        self._answered = 0
        self._executions = 0
        self._outgoing: list[bytes | memoryview] = []
        self._outgoing_bytes = 0
        self._outgoing_since_ns = 0
        self._last_run_ns = 0
        self._stats_answered = 0
        self._stats_due_ns = 0

    def serve(self, reader: FrameReader, frames: list[RawFrame] | None) -> int:
        """Serve until drained or the stream ends; `frames` came already. Return 0. Raise OSError, FrameError."""
        while frames is not None:
            if frames:
                self._take(frames)
            if self._waiting:
                self._run_next()
            if self._waiting:
                frames = self._read(reader, wait=False)
                continue
            self._flush()
            if self._is_draining and not self._incomplete:
                self._send_event(Drained(time.monotonic_ns(), self._meter.total_busy_ns))
                return 0
            if self._answered != self._stats_answered and time.monotonic_ns() >= self._stats_due_ns:
                self._send_stats()
            frames = self._read(reader, wait=True)
        return 0

    @property
    def answered(self) -> int:
        return self._answered

    @property
    def busy_s(self) -> float:
        return self._meter.total_busy_ns / 1e9

    def drain(self) -> None:
        """Answer what came, send `Drained` and leave. For a signal handler: a blocked read ends at once."""
        self._is_ordered_out = self._is_draining = True
        with contextlib.suppress(OSError):  # closed by the other side already
            self._sock.shutdown(socket.SHUT_RD)

    def _read(self, reader: FrameReader, wait: bool) -> list[RawFrame] | None:
        """As `FrameReader.read`, but an end of the stream that `drain` made is no reason to drop what came."""
        frames = reader.read(wait)
        if frames is None and self._is_ordered_out:
            self._incomplete.clear()
            return []
        return frames

    # In --------------------------------------------------------------------------------------------------------------

    def _take(self, frames: list[RawFrame]) -> None:
        """Let in what the frames of one read completed."""
        now_ns = time.monotonic_ns()
        refused: _Refused = []
        for kind, flags, stream, payload in frames:
            if kind == Kind.REQUEST:
                if self._is_draining:
                    refused.append((self._enter(stream, payload, now_ns), _DRAINING))
                elif flags & FLAG_END:
                    self._decode(stream, payload, now_ns, refused)
                else:
                    self._incomplete[stream] = bytearray(payload)
            elif kind == Kind.BODY:
                body = self._incomplete.get(stream)
                if body is not None:  # else it was cancelled or refused
                    body += payload
                    if flags & FLAG_END:
                        del self._incomplete[stream]
                        self._decode(stream, memoryview(body), now_ns, refused)
            elif kind == Kind.CANCEL:
                self._cancel(stream, now_ns, refused)
            elif kind == Kind.DRAIN:
                self._is_draining = True
            else:
                raise FrameError(f"frame kind {kind} is not for a loaded replica")
        # Only now: an answer moves the meter's clock past `now_ns`.
        for request, rejected in refused:
            self._refuse(request, rejected)

    def _decode(self, stream: int, payload: memoryview, now_ns: int, refused: _Refused) -> None:
        """Take a whole request inside: it waits for a run, or is refused."""
        try:
            codec, _, id_bytes, json_length, timeout_us = REQUEST_HEAD.unpack_from(payload)
        except struct.error as error:
            raise FrameError("request head cut short") from error
        try:
            request = self._decoder.decode(codec, json_length, payload[REQUEST_HEAD.size + id_bytes :])
        except RequestRejected as rejected:
            refused.append((self._enter(stream, payload, now_ns), rejected))
            return
        request.stream = stream
        request.payload = payload
        request.entered_ns = now_ns
        request.deadline_ns = now_ns + timeout_us * 1000 if timeout_us else 0
        request.ticket = self._meter.enter(request.layout.weight, now_ns)
        self._waiting.append(request)

    def _enter(self, stream: int, payload: memoryview, now_ns: int) -> InferRequest:
        """Take a request inside that will only be refused."""
        request = InferRequest()
        request.stream = stream
        request.payload = payload
        request.entered_ns = now_ns
        request.ticket = self._meter.enter(request.layout.weight, now_ns)
        return request

    def _cancel(self, stream: int, now_ns: int, refused: _Refused) -> None:
        incomplete = self._incomplete.pop(stream, None)
        if incomplete is not None:
            refused.append((self._enter(stream, memoryview(incomplete), now_ns), _CALLER_LEFT))
            return
        for position, request in enumerate(self._waiting):
            if request.stream == stream:
                del self._waiting[position]
                refused.append((request, _CALLER_LEFT))
                return

    # Run -------------------------------------------------------------------------------------------------------------

    def _run_next(self) -> None:
        start_ns = time.monotonic_ns()
        if self._outgoing and start_ns - self._outgoing_since_ns + self._last_run_ns > FLUSH_AFTER_NS:
            self._flush()
        batch, self._waiting = take_batch(self._waiting, self._max_batch_rows)
        self._run(batch, start_ns)
        self._last_run_ns = time.monotonic_ns() - start_ns

    def _run(self, batch: list[InferRequest], start_ns: int) -> None:
        """Answer every member. A batch that fails is run again one by one, so that a bad member hurts nobody else."""
        expired = [request for request in batch if 0 < request.deadline_ns < start_ns]
        if expired:
            for request in expired:
                self._refuse(request, _EXPIRED)
            batch = [request for request in batch if request not in expired]
            if not batch:
                return
        try:
            bodies, infer_ns = self._infer(batch)
        except Exception as error:
            if len(batch) == 1:
                self._refuse(batch[0], _explain(batch[0], error))
                return
            if isinstance(error, WrongRows):
                log.warning("batching is switched off, its answers are not those of requests alone: %s", error)
                self._max_batch_rows = 0
            for request in batch:
                self._run([request], start_ns)
            return
        batch_rows = sum([request.layout.rows for request in batch])
        left_ns = time.monotonic_ns()
        for request, body in zip(batch, bodies, strict=True):
            if isinstance(body, RequestRejected):
                body = error_body(body, _request_id(request))
            self._answer(request, body, left_ns, infer_ns, batch_rows)

    def _infer(self, batch: list[InferRequest]) -> tuple[list[Body | RequestRejected], int]:
        """Return the members' answers and the duration of the engine run."""
        outputs = [self._loaded.outputs[output].name for output, _ in batch[0].layout.wanted]
        inputs = self._inputs(batch)
        self._executions += 1
        start_ns = time.monotonic_ns()
        results = self._engine.run(inputs, outputs)
        infer_ns = time.monotonic_ns() - start_ns
        bodies = self._encoder.encode(batch, results)
        if len(batch) > 1:
            self._proof.check(batch, results, lambda request: self._engine.run(self._inputs([request]), outputs))
        return bodies, infer_ns

    def _inputs(self, batch: list[InferRequest]) -> dict[str, Array]:
        layout = batch[0].layout
        inputs = {}
        for place, name in enumerate(layout.names):
            shape = layout.shapes[place]
            if len(batch) > 1:
                shape = (sum([request.layout.rows for request in batch]), *shape[1:])
            inputs[name] = join(self._datatypes[name], [request.parts[place] for request in batch], shape)
        return inputs

    # Out -------------------------------------------------------------------------------------------------------------

    def _refuse(self, request: InferRequest, rejected: RequestRejected) -> None:
        body = error_body(rejected, _request_id(request))
        self._answer(request, body, time.monotonic_ns(), infer_ns=0, batch_rows=0)

    def _answer(self, request: InferRequest, body: Body, left_ns: int, infer_ns: int, batch_rows: int) -> None:
        """The request leaves: queue its answer."""
        meter, weight, outgoing = self._meter, request.layout.weight, self._outgoing
        share_ns = meter.leave(request.ticket, weight, left_ns)
        self._answered = answered = self._answered + 1
        status, content, json_length, text, raws = body
        body_bytes = len(text)
        for raw in raws:
            body_bytes += len(raw)
        if not outgoing:
            self._outgoing_since_ns = left_ns
        outgoing.append(
            ANSWER.pack(
                *(ANSWER_HEAD_BYTES + body_bytes, _RESPONSE, FLAG_END, 0, request.stream),
                *(status, content, 0, json_length),
                *(request.entered_ns, left_ns, infer_ns, share_ns, meter.total_busy_ns, meter.total_share_ns),
                *(weight, batch_rows, answered & _U32, self._executions & _U32),
            )
        )
        outgoing.append(text)
        outgoing += raws
        self._outgoing_bytes += body_bytes

    def _flush(self) -> None:
        if self._outgoing:
            outgoing, self._outgoing = self._outgoing, []
            total_bytes, self._outgoing_bytes = self._outgoing_bytes, 0
            send_pieces(self._sock, outgoing, total_bytes)

    def _send_stats(self) -> None:
        start_ns = time.monotonic_ns()
        memory = read_memory()
        now_ns = time.monotonic_ns()
        self._send_event(
            Stats(now_ns, self._meter.total_busy_ns, self._answered, memory.current_bytes, memory.peak_bytes)
        )
        self._stats_answered = self._answered
        self._stats_due_ns = now_ns + max(STATS_INTERVAL_NS, _MEMORY_SHARE * (now_ns - start_ns))

    def _send_event(self, event: Event) -> None:
        self._sock.sendall(pack(Kind.EVENT, payload=encode_event(event)))


def _request_id(request: InferRequest) -> str:
    return unpack_request(request.payload)[0].request_id


def _explain(request: InferRequest, error: Exception) -> RequestRejected:
    """Return what the caller is told of a failed run; the traceback goes to the log only."""
    if isinstance(error, InputRejected):
        return RequestRejected(str(error))
    if isinstance(error, MemoryError):
        # Without words of its own. What this run had taken is given back: the next may well succeed.
        error = MemoryError("memory ran out; send fewer rows at a time, or deploy with a lower max_batch")
    request_id = _request_id(request)
    log.error("request %s failed in the engine", request_id, exc_info=error, extra={"request_id": request_id})
    return RequestRejected(f"the model failed on this request: {error!s:.500}", 500, "execution_failed")
