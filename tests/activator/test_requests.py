"""The life of a request, from its head to its last byte, against played replicas."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import httpx

from serve.core.errors import ModelFailed
from tests.activator.harness import BODY, harness, infer, text, until


async def test_an_answer_carries_every_header_and_is_in_the_journal_before_it_leaves(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        replica = await it.start(it.deploy())
        replica.auto = lambda inside: inside.answer(body=b'{"model_name":"m"}')
        response = await infer(client, it, x_request_id="mine-1", traceparent=f"00-{'a' * 32}-{'b' * 16}-01")
        record = it.records("request")[0]
    assert response.status_code == 200
    assert text(response) == {"model_name": "m"}
    headers = response.headers
    assert headers["content-type"] == "application/json"
    assert headers["x-serve-revision"] == "1"
    assert headers["x-serve-replica"] == replica.id
    assert headers["x-serve-cold-start"] == "0"
    assert headers["x-serve-cost"].endswith(" USD")
    assert headers["server-timing"].startswith("queue;dur=")
    assert "date" in headers
    version, trace, span, flags = headers["traceparent"].split("-")
    assert (version, trace, flags) == ("00", "a" * 32, "01")
    assert span != "b" * 16
    assert record["id"] == headers["x-serve-request-id"]
    assert record["client_id"] == "mine-1"
    assert record["trace_id"] == "a" * 32
    assert (record["status"], record["charged"], record["bytes_in"]) == (200, True, len(BODY))


async def test_a_request_at_zero_is_held_pokes_at_once_and_tells_its_cold_start(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        key = it.deploy()
        asked = asyncio.ensure_future(infer(client, it))
        await until(lambda: it.listener.pokes == [key])
        assert it.router.demand(key, it.clock.monotonic_ns()).pending == 1
        replica = await it.start(key)
        (await replica.next()).answer()
        response = await asked
        life = it.records("segment")[0]
    assert response.headers["x-serve-cold-start"] == "1"
    timing = {part.split(";")[0] for part in response.headers["server-timing"].split(", ")}
    assert timing == {"queue", "spawn", "load", "infer"}
    assert (life["part"], life["replica"]) == ("cold", replica.id)


async def test_the_first_answer_pays_the_cold_start_and_the_second_does_not(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        replica = await it.start(it.deploy())
        replica.auto = lambda inside: inside.answer()
        await infer(client, it)
        await infer(client, it)
        first, second = it.records("request")
        cold = it.records("segment")[0]
    assert first["cold_us"] == cold["cold_us"] > 0
    assert second["cold_us"] == 0


async def test_a_full_queue_refuses_at_once_with_retry_after(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        key = it.deploy(queue=2)
        held = [asyncio.ensure_future(infer(client, it)) for _ in range(2)]
        await until(lambda: it.router.queue_status(key)[0] == 2)
        response = await infer(client, it)
        assert response.status_code == 503
        assert text(response)["code"] == "queue_full"
        assert int(response.headers["retry-after"]) >= 1
        assert int(response.headers["retry-after-ms"]) >= 1
        it.router.fail_pending(key, ModelFailed("it cannot start", retry_after_s=2))
        answers = await asyncio.gather(*held)
    assert {answer.status_code for answer in answers} == {503}
    assert {text(answer)["code"] for answer in answers} == {"model_failed"}


async def test_retry_after_of_a_full_queue_is_as_long_as_its_first_has_waited(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        key = it.deploy(queue=1, concurrency=1)
        replica = await it.start(key)
        held = [asyncio.ensure_future(infer(client, it)) for _ in range(2)]
        await until(lambda: it.router.queue_status(key)[::2] == (1, 1))
        await asyncio.sleep(1.05)
        response = await infer(client, it)
        assert (response.status_code, response.headers["retry-after"]) == (503, "2")
        for _ in held:
            (await replica.next()).answer()
        await asyncio.gather(*held)


async def test_prefer_wait_zero_is_refused_but_wakes_the_model(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        key = it.deploy()
        response = await infer(client, it, prefer="wait=0")
        demand = it.router.demand(key, it.clock.monotonic_ns())
    assert (response.status_code, text(response)["code"]) == (503, "queue_timeout")
    assert it.listener.pokes == [key]
    assert (demand.pending, demand.peak) == (0, 1)


async def test_prefer_wait_and_the_timeout_bound_the_time_in_the_queue(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        it.deploy()
        it.deploy("quick", timeout=0.1)
        first, second = await asyncio.gather(
            infer(client, it, prefer="respond-async, wait=0.05"), infer(client, it, "quick")
        )
        assert (text(first)["code"], text(second)["code"]) == ("queue_timeout", "queue_timeout")
        assert it.router.in_flight() == 0


async def test_a_replica_that_takes_too_long_is_reported_and_its_other_calls_are_replayed(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        key = it.deploy(execution_timeout=0.3)
        replica = await it.start(key)
        slow = asyncio.ensure_future(infer(client, it))
        await replica.next()
        await asyncio.sleep(0.15)
        mate = asyncio.ensure_future(infer(client, it))
        await replica.next()
        response = await slow
        assert (response.status_code, text(response)["code"]) == (504, "execution_timeout")
        assert it.listener.overdue == [replica.id]
        it.kill(replica)
        fresh = await it.start(key)
        (await fresh.next()).answer()
        assert (await mate).status_code == 200


async def test_a_caller_who_leaves_the_queue_is_never_sent_inside(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        key = it.deploy()
        leaving = asyncio.ensure_future(infer(client, it))
        await until(lambda: it.router.queue_status(key)[0] == 1)
        leaving.cancel()
        await until(lambda: it.router.queue_status(key) == (0, 0, 0))
        replica = await it.start(key)
        replica.auto = lambda inside: inside.answer()
        assert (await infer(client, it)).status_code == 200
        assert replica.answered == 1


async def test_a_caller_who_leaves_while_inside_frees_its_slot_and_its_work_is_cancelled(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        key = it.deploy(concurrency=1)
        replica = await it.start(key)
        leaving = asyncio.ensure_future(infer(client, it))
        first = await replica.next()
        leaving.cancel()
        await until(lambda: replica.cancelled == [first.stream])
        waiting = asyncio.ensure_future(infer(client, it))
        second = await replica.next()
        first.answer(status=499)
        second.answer()
        assert (await waiting).status_code == 200
        statuses = [record["status"] for record in it.records("request")]
    assert statuses == [499, 200]


async def test_calls_inside_a_dying_replica_are_replayed_each_alone(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        key = it.deploy()
        replica = await it.start(key)
        asked = [asyncio.ensure_future(infer(client, it)) for _ in range(3)]
        for _ in range(3):
            await replica.next()
        it.kill(replica)
        fresh = await it.start(key)
        for _ in range(3):
            inside = await fresh.next()
            assert fresh.inside.empty(), "a replayed call must be alone"
            inside.answer()
        answers = await asyncio.gather(*asked)
    assert [answer.status_code for answer in answers] == [200] * 3


async def test_a_poison_call_fails_the_second_time_with_the_reason(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        key = it.deploy()
        asked = asyncio.ensure_future(infer(client, it))
        for _ in range(2):
            replica = await it.start(key)
            await replica.next()
            it.kill(replica)
        response = await asked
        record = it.records("request")[0]
    assert (response.status_code, text(response)["code"]) == (502, "replica_lost")
    assert "signal 11" in text(response)["error"]
    assert (record["status"], record["charged"], record["reason"]) == (502, False, "replica_lost")
    counted = it.metrics.registry.get_sample_value
    assert counted("serve_requests_total", {"deployment": "m", "status": "5xx"}) == 1
    assert counted("serve_refusals_total", {"code": "replica_lost"}) is None


async def test_user_code_is_never_run_twice(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        replica = await it.start(it.deploy(engine="python"))
        asked = asyncio.ensure_future(infer(client, it))
        await replica.next()
        it.kill(replica)
        assert (await asked).status_code == 502


async def test_a_retired_replica_gets_nothing_new_and_is_reported_once_it_is_empty(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        key = it.deploy()
        old = await it.start(key)
        asked = asyncio.ensure_future(infer(client, it))
        inside = await old.next()
        it.router.replica_retired(old.id)
        new = await it.start(key)
        new.auto = lambda inside: inside.answer()
        assert (await infer(client, it)).headers["x-serve-replica"] == new.id
        assert it.listener.empty == []
        inside.answer()
        assert (await asked).status_code == 200
        await until(lambda: it.listener.empty == [old.id])


async def test_a_probe_is_recorded_and_never_charged(tmp_path: Path) -> None:
    async with harness(tmp_path) as it:
        key = it.deploy()
        replica = await it.start(key)
        replica.auto = lambda inside: inside.answer()
        result = await it.router.probe(key, BODY, -1)
        record = it.records("request")[0]
    assert result.status == 200
    assert (record["charged"], record["reason"]) == (False, "probe")


async def test_draining_refuses_new_requests_and_readiness(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        it.deploy()
        it.router.is_draining = True
        response = await infer(client, it)
        ready = await client.get(f"{it.url}/v2/health/ready")
        live = await client.get(f"{it.url}/v2/health/live")
    assert (response.status_code, text(response)["code"]) == (503, "draining")
    assert "retry-after" in response.headers
    assert (ready.status_code, live.status_code) == (503, 200)


async def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    async with harness(tmp_path) as it:
        replica = await it.start(it.deploy())
        replica.auto = lambda inside: inside.answer(body=inside.body)
        reader, writer = await asyncio.open_connection("127.0.0.1", int(it.url.rsplit(":", 1)[1]))
        for number in range(5):
            body = b'{"n":%d}' % number
            writer.write(
                b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
            )
        received = b""
        async with asyncio.timeout(5):
            while received.count(b'{"n":') < 5:
                received += await reader.read(65536)
        writer.close()
        await writer.wait_closed()
    order = [received.index(b'{"n":%d}' % number) for number in range(5)]
    assert order == sorted(order)


async def test_a_byte_bound_stops_reading_until_there_is_room(tmp_path: Path) -> None:
    size = 8 << 20
    async with harness(tmp_path, body_limit_bytes=size) as it:
        key = it.deploy(queue_bytes=100_000)
        request = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size
        port = int(it.url.rsplit(":", 1)[1])
        clients = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        for _, writer in clients:
            writer.write(request)
        await until(lambda: it.router.queue_status(key)[0] == 1)
        await asyncio.sleep(0.05)
        pending, held_bytes, _ = it.router.queue_status(key)
        assert pending == 1, "one that is larger than the bound gets in alone"
        assert held_bytes < size + 100_000 + 5 * (1 << 19), "of the others, what one read or two brought"
        replica = await it.start(key)
        replica.auto = lambda inside: inside.answer()
        for reader, writer in clients:
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            writer.close()
            await writer.wait_closed()
        assert it.router.queue_status(key) == (0, 0, 0)


async def test_half_open_uploads_release_their_bytes_when_the_client_goes(tmp_path: Path) -> None:
    async with harness(tmp_path) as it:
        key = it.deploy()
        sock = socket.create_connection(("127.0.0.1", int(it.url.rsplit(":", 1)[1])))
        sock.sendall(b"POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 900\r\n\r\nabc")
        await until(lambda: it.router.queue_status(key)[1] == len(b"abc"))
        sock.close()
        await until(lambda: it.router.queue_status(key)[1] == 0)
