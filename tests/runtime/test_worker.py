"""The life of a replica, in a real process over a real socket."""

from __future__ import annotations

import itertools
import select
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtime.engines.scripted import EXIT_STATUS
from serve.core.events import Drained, Failed, Phase, PhaseDone, Stats, encode_load
from serve.core.frames import FLAG_END, Kind, pack, pack_request
from tests.runtime import models
from tests.runtime.peer import DRAIN, WITHOUT_ORJSON, Peer, body, cancel, head, in_parts, request, scripted


@pytest.fixture(name="peer")
def fixture_peer(tmp_path: Path) -> Iterator[Peer]:
    """A replica that waits for its order."""
    with Peer(tmp_path) as peer:
        yield peer


def test_a_loaded_replica_reports_its_phases_and_its_model(peer: Peer, tmp_path: Path) -> None:
    ready = peer.load(scripted(tmp_path))
    phases = peer.events_of(PhaseDone)
    assert [phase.phase for phase in phases] == [Phase.SPAWN, Phase.MAP, Phase.LOAD]
    assert all(before.end_ns == after.start_ns for before, after in itertools.pairwise(phases))
    assert all(phase.start_ns <= phase.end_ns for phase in phases)
    assert (ready.platform, ready.batchable) == ("scripted", True)
    assert (ready.inputs[0].name, ready.outputs[0].shape) == ("x", (-1, 2))
    assert 1 << 20 < ready.memory_bytes <= ready.peak_memory_bytes < 1 << 30


def test_requests_that_come_with_the_order_are_answered(peer: Peer, tmp_path: Path) -> None:
    load = pack(Kind.LOAD, payload=encode_load(scripted(tmp_path)))
    assert peer.ask(load, request(1, 3))[0].data == [6, 0]


@pytest.mark.parametrize("is_loaded", [True, False])
def test_the_end_of_the_stream_is_an_order_to_exit(peer: Peer, tmp_path: Path, is_loaded: bool) -> None:
    if is_loaded:
        peer.load(scripted(tmp_path))
    peer.sock.shutdown(socket.SHUT_WR)
    assert peer.exit_code() == 0


def test_a_caller_that_vanishes_while_answers_are_due_ends_the_replica_quietly(peer: Peer, tmp_path: Path) -> None:
    peer.load(scripted(tmp_path, run_s=0.1, max_batch_rows=1))
    peer.send(*[request(stream, 1) for stream in range(1, 4)])
    peer.sock.close()
    assert peer.process.wait(10) == 0
    assert "Traceback" not in peer.log_file.read_text()


def test_a_replica_without_a_model_can_be_drained(peer: Peer) -> None:
    peer.send(DRAIN)
    assert peer.exit_code() == 0
    assert [event.total_busy_ns for event in peer.events_of(Drained)] == [0]


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"engine": "nope"}, "engine_missing", "unknown engine 'nope'; known are onnx, scripted"),
        ({"model_file": "missing.json"}, "model_invalid", "missing.json"),
        ({"script": {"load_error": {"code": "out_of_memory", "message": "too big"}}}, "out_of_memory", "too big"),
        ({"script": {"memory_mib": 1 << 40}}, "out_of_memory", "does not fit into the memory"),
        ({"script": {"load_error": {}}}, "load_error", "engine 'scripted' failed to load 'model.json': KeyError"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_reported_and_ends_the_replica(
    peer: Peer, tmp_path: Path, change: dict[str, Any], code: str, words: str
) -> None:
    order = replace(scripted(tmp_path, **change.pop("script", {})), **change)
    peer.send(pack(Kind.LOAD, payload=encode_load(order)))
    assert peer.exit_code() == 1
    (failed,) = peer.events_of(Failed)
    assert failed.code == code
    assert words in failed.message


def test_an_order_that_is_none_is_reported(peer: Peer) -> None:
    peer.send(pack(Kind.LOAD, payload=b"{}"))
    assert peer.exit_code() == 1
    assert [event.code for event in peer.events_of(Failed)] == ["load_error"]


def test_a_process_that_dies_while_loading_says_so_by_its_status(peer: Peer, tmp_path: Path) -> None:
    peer.send(pack(Kind.LOAD, payload=encode_load(scripted(tmp_path, load_exit=9))))
    assert peer.exit_code() == 9


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n", pack(Kind.END, 1), pack(Kind.REQUEST, 1, b"short", FLAG_END)]
)
@pytest.mark.parametrize("is_loaded", [True, False])
def test_bytes_that_are_no_protocol_end_the_replica(peer: Peer, tmp_path: Path, data: bytes, is_loaded: bool) -> None:
    if is_loaded:
        peer.load(scripted(tmp_path))
    peer.send(data)
    assert peer.exit_code() == 1
    assert "the other side broke the protocol" in peer.log_file.read_text()


def test_what_came_together_is_run_together(peer: Peer, tmp_path: Path) -> None:
    peer.load(scripted(tmp_path))
    answers = peer.ask(request(1, 1), request(2, 2, 3), request(3, 4), streams=(1, 2, 3))
    assert [answer.data for answer in answers] == [[2, 0], [4, 0, 6, 0], [8, 0]]
    assert [answer.usage.rows for answer in answers] == [1, 2, 1]
    assert {(answer.usage.batch_rows, answer.usage.executions) for answer in answers} == {(4, 1)}
    assert [answer.usage.answered for answer in answers] == [1, 2, 3]


def test_a_batch_is_bounded_in_rows_and_a_larger_request_runs_alone(peer: Peer, tmp_path: Path) -> None:
    peer.load(scripted(tmp_path, max_batch_rows=3))
    frames = [request(1, 1, 2), request(2, 3, 4), request(3, 1, 2, 3, 4, 5), request(4, 6)]
    answers = peer.ask(*frames, streams=(1, 2, 3, 4))
    assert [answer.usage.batch_rows for answer in answers] == [2, 2, 5, 1]


def test_requests_to_an_unbatchable_model_run_alone(peer: Peer, tmp_path: Path) -> None:
    peer.load(scripted(tmp_path, batchable=False))
    answers = peer.ask(request(1, 1), request(2, 2), streams=(1, 2))
    assert [(answer.usage.rows, answer.usage.batch_rows) for answer in answers] == [(1, 1), (1, 1)]


@pytest.mark.parametrize(("action", "status"), [("raise", 500), ("reject", 400)])
def test_a_member_that_fails_hurts_only_itself(peer: Peer, tmp_path: Path, action: str, status: int) -> None:
    peer.load(scripted(tmp_path, on_value={"13": action}))
    malformed = pack_request(3, head(request_id="w-3"), b"{}")
    answers = peer.ask(request(1, 1), request(2, 13), malformed, request(4, 4), streams=(1, 2, 3, 4))
    assert [answer.status for answer in answers] == [200, status, 400, 200]
    assert [answers[0].data, answers[3].data] == [[2, 0], [8, 0]]
    assert [answer.message.get("request_id") for answer in answers] == [None, "w-2", "w-3", None]


def test_a_failure_of_the_engine_is_told_in_one_sentence_and_its_traceback_is_logged(
    peer: Peer, tmp_path: Path
) -> None:
    peer.load(scripted(tmp_path, on_value={"13": "raise"}))
    (answer,) = peer.ask(request(1, 13))
    assert answer.message["code"] == "execution_failed"
    assert "the script fails: input 'x' begins with 13.0" in answer.message["error"]
    assert "Traceback" not in answer.body.decode()
    log = peer.log_file.read_text()
    assert "request w-1 failed in the engine" in log
    assert "Traceback" in log


def test_an_engine_that_ends_the_process_ends_the_replica(peer: Peer, tmp_path: Path) -> None:
    peer.load(scripted(tmp_path, on_value={"13": "exit"}))
    peer.send(request(1, 13))
    assert peer.exit_code() == EXIT_STATUS


def test_outputs_that_do_not_fit_the_batch_switch_joining_off(peer: Peer, tmp_path: Path) -> None:
    # The model says its first dimension is variable, but gives one row for any number.
    peer.load(models.order(tmp_path, models.first_row()))
    answers = peer.ask(request(1, 1, 2), request(2, 3), streams=(1, 2))
    assert [answer.data for answer in answers] == [[1, 0], [3, 0]]
    assert "batching is switched off" in peer.log_file.read_text()
    assert peer.ask(request(3, 1), request(4, 3), streams=(3, 4))[0].usage.batch_rows == 1


def test_a_caller_that_left_is_dropped_before_its_run_and_accounted(peer: Peer, tmp_path: Path) -> None:
    peer.load(scripted(tmp_path, max_batch_rows=1, run_s=0.02))
    frames = [request(1, 1), request(2, 2), request(3, 3), cancel(2)]
    first, left, third = peer.ask(*frames, streams=(1, 2, 3))
    assert (first.status, left.status, third.status) == (200, 499, 200)
    assert third.usage.executions == 2
    assert first.usage.share_ns + left.usage.share_ns + third.usage.share_ns == third.usage.total_busy_ns


def test_a_cancel_reaches_a_request_that_waits_behind_a_long_run(peer: Peer, tmp_path: Path) -> None:
    peer.load(scripted(tmp_path, max_batch_rows=1, run_s=0.2))
    (first,) = peer.ask(request(1, 1), request(2, 2), request(3, 3))
    assert first.usage.answered == 1  # it did not wait for the second run
    second, third = peer.ask(cancel(3), streams=(2, 3))
    assert (second.status, third.status) == (200, 499)
    assert max(second.usage.executions, third.usage.executions) == 2


def test_a_cancel_that_comes_too_late_or_for_nobody_changes_nothing(peer: Peer, tmp_path: Path) -> None:
    peer.load(scripted(tmp_path))
    peer.ask(request(1, 1))
    assert peer.ask(cancel(1), cancel(77), request(2, 2), streams=(2,))[0].data == [4, 0]
    assert sorted(peer.answers) == [1, 2]


def test_a_body_in_parts_is_a_request_once_it_is_whole(peer: Peer, tmp_path: Path) -> None:
    peer.load(scripted(tmp_path))
    parts = in_parts(1, 5)
    answers = peer.ask(parts[0], request(2, 1), parts[1], *in_parts(3, 6), parts[2], streams=(1, 2, 3))
    assert [answer.data for answer in answers] == [[10, 0], [2, 0], [12, 0]]


def test_a_caller_that_leaves_between_the_parts_is_answered_once(peer: Peer, tmp_path: Path) -> None:
    peer.load(scripted(tmp_path))
    parts = in_parts(1, 5)
    (answer,) = peer.ask(parts[0], parts[1], cancel(1), parts[2])
    assert (answer.status, answer.usage.executions) == (499, 0)
    assert peer.ask(request(2, 1), streams=(2,))[0].status == 200


def test_a_draining_replica_finishes_what_is_inside_and_refuses_the_rest(peer: Peer, tmp_path: Path) -> None:
    peer.load(scripted(tmp_path, max_batch_rows=1, run_s=0.01))
    parts = in_parts(3, 3)
    peer.send(request(1, 1), request(2, 2), parts[0], DRAIN, request(4, 4), parts[1], *in_parts(5, 5))
    peer.read_until(lambda: len(peer.answers) == 4)
    assert not peer.events_of(Drained)
    peer.send(parts[2])
    assert peer.exit_code() == 0
    assert {stream: answer.status for stream, answer in peer.answers.items()} == {
        1: 200,
        2: 200,
        3: 200,
        4: 503,
        5: 503,
    }
    assert peer.answers[4].message["code"] == "draining"
    (drained,) = peer.events_of(Drained)
    assert drained.total_busy_ns == sum(answer.usage.share_ns for answer in peer.answers.values())


def test_an_idle_replica_drains_at_once(peer: Peer, tmp_path: Path) -> None:
    peer.load(scripted(tmp_path))
    peer.send(DRAIN)
    assert peer.exit_code() == 0
    assert isinstance(peer.events[-1], Drained)


def test_a_request_whose_time_is_over_is_not_started(peer: Peer, tmp_path: Path) -> None:
    peer.load(scripted(tmp_path, max_batch_rows=1, run_s=0.05))
    frames = [request(1, 1), request(2, 2, timeout_us=1000), request(3, 3, timeout_us=60_000_000)]
    first, late, third = peer.ask(*frames, streams=(1, 2, 3))
    assert (first.status, late.status, third.status) == (200, 503, 200)
    assert "Request timeout expired" in late.message["error"]
    assert third.usage.executions == 2


def test_the_shares_of_all_answers_sum_to_the_busy_time(peer: Peer, tmp_path: Path) -> None:
    peer.load(scripted(tmp_path, max_batch_rows=3, row_s=0.001, on_value={"13": "raise"}))
    stream = itertools.count(1)
    for burst in ([1, 2, 3], [13, 1], [2, 2, 2, 2, 13]):
        numbers = list(itertools.islice(stream, len(burst)))
        peer.ask(*[request(n, *range(13, 13 + rows)) for n, rows in zip(numbers, burst, strict=True)], streams=numbers)
    usages = [answer.usage for answer in peer.answers.values()]
    last = max(usages, key=lambda usage: usage.answered)
    assert sum(usage.share_ns for usage in usages) == last.total_share_ns == last.total_busy_ns
    assert all(usage.entered_ns <= usage.left_ns for usage in usages)
    assert last.total_busy_ns <= last.left_ns - min(usage.entered_ns for usage in usages)
    assert all(0 <= usage.infer_ns <= usage.left_ns - usage.entered_ns for usage in usages)


def test_a_large_answer_waits_for_a_peer_that_does_not_read(peer: Peer, tmp_path: Path) -> None:
    width = 200_000
    pair = {"input": "x", "output": "y", "datatype": "FP32", "shape": [-1, width]}
    peer.load(scripted(tmp_path, tensors=[pair], max_batch_rows=4))
    frames = [pack_request(stream, head(), body(stream, width=width)) for stream in (1, 2, 3, 4)]
    sender = threading.Thread(target=peer.send, args=frames)
    sender.start()
    select.select([peer.sock], [], [])  # it begins to answer, and both sides fill their buffers and are stuck
    peer.read_until(lambda: len(peer.answers) == 4)
    sender.join()
    assert [(len(answer.data), answer.data[0]) for answer in peer.answers.values()] == [
        (width, 2 * stream) for stream in peer.answers
    ]


def test_figures_come_after_the_first_answer_and_then_at_most_once_a_second(peer: Peer, tmp_path: Path) -> None:
    peer.load(scripted(tmp_path))
    for stream in range(1, 41):
        peer.ask(request(stream, 1), streams=(stream,))
    peer.send(DRAIN)
    peer.exit_code()
    stats = peer.events_of(Stats)
    assert stats[0].answered == 1
    assert stats[0].memory_bytes <= stats[0].peak_memory_bytes
    assert all(after.at_ns - before.at_ns >= 1_000_000_000 for before, after in itertools.pairwise(stats))


def test_a_loaded_replica_has_one_thread(peer: Peer, tmp_path: Path) -> None:
    peer.load(models.order(tmp_path, models.perceptron()))
    peer.ask(pack_request(1, head(), body(1, width=64)))
    assert len(list(Path(f"/proc/{peer.process.pid}/task").iterdir())) == 1


def test_an_environment_without_orjson_answers_the_same(tmp_path: Path) -> None:
    with Peer(tmp_path, child=WITHOUT_ORJSON) as peer:
        peer.load(scripted(tmp_path))
        answers = peer.ask(request(1, 1, 1.5), request(2, 3), streams=(1, 2))
        assert [answer.data for answer in answers] == [[2, 0, 3, 0], [6, 0]]
