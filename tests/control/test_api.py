"""`/api/v1` over real HTTP: who is let in, what goes in and out, and how refusals look."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import uvicorn

from autoscaler.history import DecisionRecord
from serve.control.schemas import ANSWERS
from serve.core.errors import ModelInvalid
from serve.core.ids import RevisionKey
from tests.cache.harness import models
from tests.control.bench import Bench, bench, deploy_json, sha256, until


@dataclass
class Served:
    platform: Bench
    client: httpx.AsyncClient
    url: str

    async def deploy(self, content: bytes = b"model", **spec: Any) -> list[dict[str, Any]]:
        """Upload and deploy as the command does. Return the events."""
        await self.client.put(f"/api/v1/blobs/{sha256(content)}", content=content)
        answer = await self.client.post("/api/v1/deployments", json=deploy_json(content, **spec))
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/x-ndjson"
        return [json.loads(line) for line in answer.text.splitlines()]

    async def get(self, path: str, **query: Any) -> Any:
        answer = await self.client.get("/api/v1" + path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()


@asynccontextmanager
async def served(path: Path) -> AsyncIterator[Served]:
    async with bench(path) as platform:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            config = uvicorn.Config(platform.plane.app, lifespan="off", log_config=None)
            server = uvicorn.Server(config)
            serving = asyncio.ensure_future(server.serve([sock]))
            url = f"http://127.0.0.1:{sock.getsockname()[1]}"
            headers = {"authorization": f"Bearer {platform.home.token()}"}
            async with httpx.AsyncClient(base_url=url, headers=headers, timeout=20, trust_env=False) as client:
                yield Served(platform, client, url)
            server.should_exit = True
            await serving


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Served]:
    async with served(tmp_path) as running:
        yield running


def refusal(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check what every refusal has and return its body."""
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["code"]) == (status, code), answer.text
    assert body["request_id"] == answer.headers["x-serve-request-id"]
    assert body["error"]
    assert "Traceback" not in answer.text
    return body


# Who is let in -------------------------------------------------------------------------------------------------------


async def test_without_the_token_nobody_is_let_in(api: Served) -> None:
    for given in (None, "Bearer", "Bearer wrong", "Basic dXNlcjpwdw==", "Bearer ünicode"):
        await assert_kept_out(api, given)


async def assert_kept_out(api: Served, given: str | None) -> None:
    async with httpx.AsyncClient(base_url=api.url, trust_env=False) as stranger:
        headers = {b"accept": b"*/*"} if given is None else {b"authorization": given.encode()}
        for method, path in (("GET", "/deployments"), ("GET", "/schema"), ("DELETE", "/deployments/x"), ("GET", "/no")):
            answer = await stranger.request(method, "/api/v1" + path, headers=headers)
            refusal(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"


async def test_a_host_that_is_not_ours_is_refused_whatever_the_token(api: Served) -> None:
    for host in ("localhost", "LOCALHOST:8000", "[::1]:8000", "serve.example:8000"):
        assert (await api.client.get("/api/v1/platform", headers={"host": host})).status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", ""):
        refusal(await api.client.get("/api/v1/platform", headers={"host": host}), 403, "forbidden")


async def test_calls_are_counted_by_status_class(api: Served) -> None:
    await api.client.get("/api/v1/platform")
    await api.client.get("/api/v1/nothing")
    text = api.platform.metrics.exposition(0).decode()
    assert 'serve_control_requests_total{status="2xx"} 1.0' in text
    assert 'serve_control_requests_total{status="4xx"} 1.0' in text


async def test_deployments_are_counted_by_state(api: Served) -> None:
    await api.deploy()
    await api.deploy(name="other")
    await api.platform.scaler.remove(RevisionKey("other", 1))
    api.platform.plane.measure()
    text = api.platform.metrics.exposition(0).decode()
    assert 'serve_deployments{state="ready"} 1.0' in text
    assert 'serve_deployments{state="cold"} 1.0' in text
    assert 'serve_deployments{state="failed"} 0.0' in text


# Routing and errors --------------------------------------------------------------------------------------------------


async def test_an_unknown_address_is_404_as_json(api: Served) -> None:
    for path in ("", "/v1", "/v1/", "/v1/nothing", "/v1/deployments/", "/v2/x"):
        refusal(await api.client.get("/api" + path), 404, "not_found")


async def test_a_wrong_method_is_405_and_names_all_right_ones(api: Served) -> None:
    answer = await api.client.patch("/api/v1/deployments")
    refusal(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, POST"


async def test_an_internal_error_shows_no_traceback_and_says_where_to_look(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Any:
        raise RuntimeError("secret inside")

    monkeypatch.setattr(type(api.platform.plane.deployments), "claims", property(lambda _self: broken()))
    answer = await api.client.get("/api/v1/platform")
    body = refusal(answer, 500, "internal")
    assert body["request_id"] in body["error"]
    assert "secret" not in answer.text


async def test_an_unknown_deployment_is_404(api: Served) -> None:
    for method in ("GET", "DELETE"):
        for name in ("nobody", "..%2f..", "%00"):
            answer = await api.client.request(method, f"/api/v1/deployments/{name}")
            assert answer.status_code == 404
            assert answer.json()["code"] in {"unknown_model", "not_found"}


# Deploying -----------------------------------------------------------------------------------------------------------


async def test_a_deploy_asks_for_what_is_missing_takes_it_and_ends_with_a_receipt(api: Served) -> None:
    answer = await api.client.post("/api/v1/deployments", json=deploy_json())
    assert refusal(answer, 422, "files_missing")["files"] == ["model.bin"]
    assert (await api.client.put(f"/api/v1/blobs/{sha256(b'model')}", content=b"model")).status_code == 201
    assert (await api.client.put(f"/api/v1/blobs/{sha256(b'model')}", content=b"model")).status_code == 200
    events = await api.deploy()
    assert [event["event"] for event in events[:-1]] == ["progress"] * (len(events) - 1)
    assert [event["step"] for event in events[:-1]] == ["start", "infer", "measure", "done"]
    assert (events[-1]["event"], events[-1]["unchanged"]) == ("deployed", False)
    receipt = events[-1]["receipt"]
    assert receipt["endpoint"] == "http://127.0.0.1:8000/v2/models/digits/infer"
    assert receipt["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert set(receipt) == {
        *("name", "revision", "endpoint", "verified", "cold_start", "warm_ms", "memory_bytes", "threads"),
        *("concurrency", "max_batch", "cost", "curl", "inputs", "outputs", "idle_s", "model"),
    }
    again = await api.deploy()
    assert again == [{"event": "deployed", "unchanged": True, "receipt": receipt}]


async def test_a_deploy_that_fails_ends_with_the_error(api: Served) -> None:
    api.platform.scaler.refuse = ModelInvalid("the graph is cut short; export it again")
    events = await api.deploy()
    assert events[-1] == {
        "event": "failed",
        "error": "the graph is cut short; export it again",
        "code": "model_invalid",
    }


INVALID: list[tuple[dict[str, Any], list[str]]] = [
    ({"spec": {"name": "digits", "idle": "soon"}}, ["idle", "is not a duration", "60s"]),
    ({"spec": {"name": "digits", "idel": 60}}, ["idel is not a setting", "did you mean idle?"]),
    ({"spec": {"name": "digits", "max": 0}}, ["max is 0: give 1 or more"]),
    ({"spec": {"name": "digits", "min": 3, "max": 2}}, ["max (2) is below min (3)"]),
    ({"spec": {"name": "no/slash"}}, ["name", "cannot name a deployment"]),
    ({"spec": {"name": "ready"}}, ["word of the inference protocol"]),
    ({"spec": {}}, ["name is missing"]),
    ({"model": {"file": "other.bin"}}, ["`file` must be the path of one of `files`"]),
    ({"model": {"url": "/etc/passwd"}}, ["http:// or https://"]),
    ({"model": {"url": "file:///etc/passwd"}}, ["http:// or https://"]),
    ({"model": {"file": "../m", "files": [{"path": "../m", "size": 1, "sha256": "0" * 64}]}}, ["'..'", "rename"]),
    ({"model": {"file": "m", "files": [{"path": "m", "size": -1, "sha256": "0" * 64}]}}, ["size", "-1"]),
    ({"model": {"file": "m", "files": [{"path": "m", "size": 1, "sha256": "xyz"}]}}, ["sha256"]),
    ({"sample": [1]}, ["sample", "give keys and values"]),
]


async def test_an_invalid_deploy_is_one_sentence_that_names_field_and_remedy(api: Served) -> None:
    for change, words in INVALID:
        answer = await api.client.post("/api/v1/deployments", json=deploy_json() | change)
        sentence = refusal(answer, 422, "invalid_spec")["error"]
        assert [word for word in words if word not in sentence] == [], sentence


async def test_a_body_that_is_no_object_is_refused(api: Served) -> None:
    for body in (b"", b"{", b"\xff", b"[" * 100_000, b'{"spec": NaN', b"null"):
        answer = await api.client.post("/api/v1/deployments", content=body)
        assert answer.status_code in {400, 422}
        assert answer.json()["code"] in {"bad_request", "invalid_spec"}


async def test_a_sample_may_hold_values_that_are_not_finite(api: Served) -> None:
    await api.client.put(f"/api/v1/blobs/{sha256(b'model')}", content=b"model")
    sample = {"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": [float("nan")]}]}
    answer = await api.client.post("/api/v1/deployments", content=json.dumps(deploy_json() | {"sample": sample}))
    assert json.loads(answer.text.splitlines()[-1])["event"] == "deployed"
    assert math.isnan(api.platform.router.probes[0]["inputs"][0]["data"][0])


async def test_an_internal_error_while_lines_stream_ends_them_with_a_failure(api: Served) -> None:
    def broken(_revision: object, _request: object) -> Any:
        raise RuntimeError("secret inside")

    api.platform.router.answer = broken
    last = (await api.deploy())[-1]
    assert (last["event"], last["code"]) == ("failed", "internal")
    assert "secret" not in last["error"]
    assert api.platform.router.routes == {}


async def test_a_body_over_the_limit_is_413(api: Served) -> None:
    refusal(await api.client.post("/api/v1/deployments", content=b" " * (6 << 20)), 413, "too_large")

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * (1 << 20)

    # The answer may come while we are still writing, and the connection be closed on us.
    with contextlib.suppress(httpx.WriteError):
        refusal(await api.client.post("/api/v1/deployments", content=endless()), 413, "too_large")


async def test_a_name_that_is_being_published_is_409_before_anything_streams(api: Served) -> None:
    api.platform.scaler.gate = asyncio.Event()
    deploying = asyncio.ensure_future(api.deploy())
    await until(lambda: bool(api.platform.scaler.known))
    answer = await api.client.post("/api/v1/deployments", json=deploy_json())
    refusal(answer, 409, "conflict")
    refusal(await api.client.get("/api/v1/deployments/digits"), 503, "publishing")
    api.platform.scaler.gate.set()
    assert (await deploying)[-1]["event"] == "deployed"


async def test_progress_is_seen_while_the_work_goes_on(api: Served) -> None:
    api.platform.scaler.gate = asyncio.Event()
    await api.platform.put(b"model")
    async with api.client.stream("POST", "/api/v1/deployments", json=deploy_json()) as answer:
        lines = answer.aiter_lines()
        assert json.loads(await anext(lines))["step"] == "start"
        api.platform.scaler.gate.set()
        assert [json.loads(line)["event"] async for line in lines][-1] == "deployed"


async def test_a_client_that_leaves_cancels_its_publish(api: Served) -> None:
    api.platform.scaler.gate = asyncio.Event()
    await api.platform.put(b"model")
    async with api.client.stream("POST", "/api/v1/deployments", json=deploy_json()) as answer:
        await anext(answer.aiter_lines())
    await until(lambda: api.platform.plane.deployments.claims == {})
    assert api.platform.scaler.removed == [RevisionKey("digits", 1)]
    assert api.platform.router.routes == {}
    assert (await api.get("/deployments")) == {"deployments": []}


async def test_a_publish_is_given_up_after_wait(api: Served) -> None:
    api.platform.scaler.gate = asyncio.Event()
    await api.platform.put(b"model")
    answer = await api.client.post("/api/v1/deployments?wait=0.05", json=deploy_json())
    last = json.loads(answer.text.splitlines()[-1])
    assert (last["event"], last["code"]) == ("failed", "publish_failed")
    assert "--wait" in last["error"]
    refusal(await api.client.post("/api/v1/deployments?wait=soon", json=deploy_json()), 400, "bad_request")


# Uploads -------------------------------------------------------------------------------------------------------------


async def test_an_upload_of_other_bytes_than_announced_is_refused_and_not_kept(api: Served) -> None:
    answer = await api.client.put(f"/api/v1/blobs/{sha256(b'model')}", content=b"other")
    refusal(answer, 422, "source_changed")
    answer = await api.client.post("/api/v1/deployments", json=deploy_json())
    refusal(answer, 422, "files_missing")


async def test_uploads_over_the_limits_are_413_and_without_length_or_digest_refused(api: Served) -> None:
    too_large = await api.client.put(f"/api/v1/blobs/{'0' * 64}", content=b"x" * (2 << 20))
    refusal(too_large, 413, "too_large")

    async def parts() -> AsyncIterator[bytes]:
        yield b"model"

    unsized = await api.client.put(f"/api/v1/blobs/{sha256(b'model')}", content=parts())
    refusal(unsized, 400, "bad_request")
    refusal(await api.client.put("/api/v1/blobs/not-a-digest", content=b"x"), 422, "invalid_spec")


async def test_an_upload_that_breaks_off_leaves_nothing(api: Served) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(api.url.rsplit(":", 1)[1]))
    head = (
        f"PUT /api/v1/blobs/{sha256(b'model')} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n"
        f"authorization: {api.client.headers['authorization']}\r\n\r\nmod"
    )
    writer.write(head.encode())
    await writer.drain()
    await until(lambda: bool(api.platform.store._flights))
    writer.close()
    await until(lambda: not api.platform.store._flights)
    assert api.platform.store.used_bytes == 0
    assert await reader.read() == b""


# What if -------------------------------------------------------------------------------------------------------------


async def test_what_if_asks_about_the_serving_revision_with_the_settings_changed(api: Served) -> None:
    await api.deploy(idle=30)
    path = "/deployments/digits/what-if"
    jsonschema.validate(
        await api.get(path, changes="idle=10s, max=4", since="1970-01-01T00:00:01Z"), ANSWERS["what_if"]
    )
    await api.get(path, changes="max=unset,stable-window=90")
    assert api.platform.forecaster.asked == [
        (RevisionKey("digits", 1), {"idle": 10.0, "max": 4}, 1_000_000_000, None),
        (RevisionKey("digits", 1), {"stable_window": 90.0}, None, None),
    ]


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ("", 400, "nothing is changed: write --what-if idle=10s,max=4"),
        ("idle", 400, "'idle' changes nothing: write"),
        ("idle=", 400, "'idle=' changes nothing: write"),
        ("engine=python", 400, "'engine' cannot be simulated: --what-if takes idle, min, max"),
        ("idel=3", 400, "'idel' is not a setting: --what-if takes idle"),
        ("idle=1,idle=2", 400, "'idle' is given twice"),
        ("idle=soon", 422, "'soon' is not a duration"),
        ("min=4,max=2", 422, r"max \(2\) is below min \(4\)"),
    ],
)
async def test_what_cannot_be_simulated_is_one_sentence_that_says_what_can(
    api: Served, changes: str, status: int, words: str
) -> None:
    await api.deploy()
    answer = await api.client.get("/api/v1/deployments/digits/what-if", params={"changes": changes})
    body = refusal(answer, status, "bad_request" if status == 400 else "invalid_spec")
    assert re.search(words, body["error"])
    assert api.platform.forecaster.asked == []


# Looking and changing ------------------------------------------------------------------------------------------------


async def test_listing_and_status_have_the_shapes_of_the_contract(api: Served) -> None:
    await api.deploy(labels={"team": "vision"}, idle=30)
    (line,) = (await api.get("/deployments"))["deployments"]
    created_at = line.pop("created_at")
    assert created_at.endswith("Z")
    assert line == {
        "name": "digits",
        "state": "ready",
        "revision": 1,
        "replicas": 1,
        "idle_s": 30.0,
        "labels": {"team": "vision"},
    }
    status = await api.get("/deployments/digits")
    assert status.pop("spec")["labels"] == {"team": "vision"}
    assert status == {
        "name": "digits",
        "state": "ready",
        "created_at": created_at,
        "traffic": [{"revision": 1, "weight": 1}],
        "replicas": [
            {
                "id": "digits-r1-aaaaaaaa",
                "pid": 4711,
                "revision": 1,
                "state": "ready",
                "in_flight": 2,
                "memory_bytes": 30 << 20,
            }
        ],
        "queue": {"count": 1, "bytes": 100},
        "cold_start_ms": {"p50": 8.0, "p95": 8.0, "phases": {"spawn": 2.0}},
    }


async def test_the_largest_size_can_be_shown_and_one_beyond_any_machine_is_refused(api: Served) -> None:
    await api.deploy(queue_bytes="1PiB")
    assert (await api.get("/deployments/digits"))["spec"]["queue_bytes"] == 1 << 50
    answer = await api.client.post("/api/v1/deployments", json=deploy_json(queue_bytes="99999999999PiB"))
    assert answer.status_code == 422
    assert "queue_bytes" in answer.json()["error"]


async def test_history_says_what_changed_newest_first(api: Served) -> None:
    await api.deploy(b"one", idle=30)
    await api.deploy(b"one", idle=60, labels={"team": "a"})
    await api.deploy(b"two", idle=60, labels={"team": "a"})
    third, second, first = (await api.get("/deployments/digits/history"))["revisions"]
    assert [revision["revision"] for revision in (third, second, first)] == [3, 2, 1]
    assert first["changes"] == []
    assert second["changes"] == ["idle: 30 → 60", "labels: none → team=a"]
    assert third["changes"] == [f"model: {second['digest'][:12]} → {third['digest'][:12]}"]
    assert [revision["current"] for revision in (third, second, first)] == [True, False, False]
    assert third["size_bytes"] == 3


async def test_rollback_gives_the_traffic_back_without_starting_anything(api: Served) -> None:
    for idle in (10, 20, 30):
        await api.deploy(idle=idle)
    warmed = list(api.platform.scaler.warmed)
    rollback = "/api/v1/deployments/digits/rollback"
    assert (await api.client.post(rollback, json={"revision": None})).json() == {"name": "digits", "revision": 2}
    assert (await api.client.post(rollback, json={"revision": 1})).json() == {"name": "digits", "revision": 1}
    assert api.platform.scaler.warmed == warmed
    assert api.platform.router.routes["digits"].weights == ((1, 1),)
    assert [key.number for key, reachable in api.platform.scaler.reachable.items() if reachable] == [1]
    status = await api.get("/deployments/digits")
    assert status["spec"]["idle"] == 10
    refusal(await api.client.post(rollback), 404, "unknown_version")
    refusal(await api.client.post(rollback, json={"revision": 9}), 404, "unknown_version")
    refusal(await api.client.post(rollback, json={"revision": "x"}), 422, "invalid_spec")
    refusal(await api.client.post("/api/v1/deployments/nobody/rollback"), 404, "unknown_model")


async def test_logs_go_with_a_deleted_deployment_but_not_those_of_the_next_of_that_name(api: Served) -> None:
    await api.deploy()
    folder = api.platform.home.logs / "replicas" / "digits"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("digits-r1-abcdefg2.log", "digits-r2-abcdefg2.log", "notes.log"):
        (folder / name).touch()
    await api.client.delete("/api/v1/deployments/digits")
    assert sorted(path.name for path in folder.iterdir()) == ["digits-r2-abcdefg2.log", "notes.log"]


async def test_a_deleted_deployment_is_gone_whole_and_its_numbers_stay_taken(api: Served) -> None:
    await api.deploy(idle=10)
    await api.deploy(idle=20)
    answer = await api.client.delete("/api/v1/deployments/digits")
    assert answer.json() == {"name": "digits", "deleted": True}
    assert api.platform.scaler.known == {}
    assert api.platform.router.routes == {}
    assert api.platform.router.revisions == {}
    assert models(api.platform.store) == []
    refusal(await api.client.delete("/api/v1/deployments/digits"), 404, "unknown_model")
    assert (await api.deploy())[-1]["receipt"]["revision"] == 3


async def test_everything_is_back_after_a_restart(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        await api.deploy(idle=10)
        await api.deploy(idle=20)
        await api.client.post("/api/v1/deployments/digits/rollback")
        before = await api.get("/deployments/digits/history")
        route = api.platform.router.routes["digits"]
    async with served(tmp_path) as api:
        after = await api.get("/deployments/digits/history")
        for revision in (*before["revisions"], *after["revisions"]):
            revision.pop("state")  # nothing was started
        assert after == before
        assert api.platform.router.routes["digits"] == route
        assert api.platform.scaler.reachable == {RevisionKey("digits", 1): True, RevisionKey("digits", 2): False}
        assert api.platform.scaler.warmed == []


async def test_a_model_the_store_lost_is_a_failed_deployment_that_can_be_deployed_again(tmp_path: Path) -> None:
    async with served(tmp_path) as api:
        await api.deploy()
        digest = models(api.platform.store)[0].digest
        api.platform.plane.deployments._pins[RevisionKey("digits", 1)].release()
        await api.platform.store.delete(digest)
    async with served(tmp_path) as api:
        assert (await api.get("/deployments/digits"))["state"] == "failed"
        assert api.platform.router.routes["digits"].state == "failed"
        refusal(await api.client.post("/api/v1/deployments/digits/rollback", json={"revision": 1}), 404, "not_found")
        events = await api.deploy()
        assert (events[-1]["event"], events[-1]["unchanged"]) == ("deployed", False)
        assert (await api.get("/deployments/digits"))["state"] == "ready"


async def test_explain_gives_the_decisions_of_that_deployment(api: Served) -> None:
    await api.deploy()
    api.platform.scaler.records = [
        DecisionRecord(1_700_000_000_000_000_000, RevisionKey("digits", 1), 0, 1, "first request"),
        DecisionRecord(1_700_000_000_000_000_000, RevisionKey("other", 1), 1, 0, "idle"),
    ]
    assert await api.get("/deployments/digits/explain") == {
        "decisions": [
            {"time": "2023-11-14T22:13:20.000Z", "revision": 1, "from": 0, "to": 1, "reason": "first request"}
        ]
    }


# Logs ----------------------------------------------------------------------------------------------------------------


def write_log(api: Served, replica: str, text: str, name: str = "digits") -> Path:
    folder = api.platform.home.logs / "replicas" / name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{replica}.log"
    with path.open("a") as file:
        file.write(text)
    return path


async def log_lines(api: Served, **query: Any) -> list[dict[str, Any]]:
    answer = await api.client.get("/api/v1/deployments/digits/logs", params=query)
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_logs_are_the_last_lines_of_all_replicas(api: Served) -> None:
    dated = '{"time": "2026-01-01T00:00:00Z", "m": 1}'
    write_log(api, "digits-r1-aaaaaaaa", f"plain\n{dated}\n")
    assert await log_lines(api) == [
        {"replica": "digits-r1-aaaaaaaa", "line": "plain"},
        {"time": "2026-01-01T00:00:00Z", "replica": "digits-r1-aaaaaaaa", "line": dated},
    ]
    assert [line["line"] for line in await log_lines(api, tail=1)] == [dated]
    assert await log_lines(api, tail=0) == []
    refusal(await api.client.get("/api/v1/deployments/digits/logs?tail=-1"), 400, "bad_request")


async def test_logs_of_one_request_are_found_whole_words_only(api: Served) -> None:
    write_log(api, "a", "request w-1 came\nrequest w-12 came\nrequest xw-1\n{'id': 'w-1'}\n")
    lines = await log_lines(api, request_id="w-1")
    assert [line["line"] for line in lines] == ["request w-1 came", "{'id': 'w-1'}"]


async def test_followed_logs_go_on_with_whole_lines_and_new_replicas(api: Served) -> None:
    write_log(api, "a", "first\n")
    async with api.client.stream("GET", "/api/v1/deployments/digits/logs", params={"follow": 1}) as answer:
        lines = answer.aiter_lines()
        assert json.loads(await anext(lines))["line"] == "first"
        write_log(api, "a", "second\nhal")
        assert json.loads(await anext(lines))["line"] == "second"
        write_log(api, "a", "f\n")
        assert json.loads(await anext(lines))["line"] == "half"
        write_log(api, "b", "third\n")
        assert json.loads(await anext(lines)) == {"replica": "b", "line": "third"}


async def test_logs_never_leave_their_folder(api: Served, tmp_path: Path) -> None:
    secret = tmp_path / "token"
    write_log(api, "a", "mine\n").with_name("b.log").symlink_to(secret)
    assert [line["line"] for line in await log_lines(api)] == ["mine"]
    (api.platform.home.logs / "platform.log").write_text("platform\n")
    for name in ("..", "%2e%2e", "..%2f", ".hidden", "a%2fb", "%2fetc"):
        answer = await api.client.get(f"/api/v1/deployments/{name}/logs")
        assert answer.status_code == 404, name
        assert "platform" not in answer.text.replace("platform's", "")


async def test_a_failed_publish_has_logs_without_a_deployment_and_strangers_have_none(api: Served) -> None:
    write_log(api, "digits-r1-aaaaaaaa", "why it failed\n")
    assert [line["line"] for line in await log_lines(api)] == ["why it failed"]
    refusal(await api.client.get("/api/v1/deployments/nobody/logs"), 404, "unknown_model")


async def test_bytes_that_are_no_text_and_very_long_lines_are_shown_as_far_as_possible(api: Served) -> None:
    path = write_log(api, "a", "")
    path.write_bytes(b"\xff\xfe\n" + b"x" * 200_000 + b"\n{broken\n[1]\n")
    lines = await log_lines(api)
    assert lines[0]["line"] == "��"
    assert "".join(line["line"] for line in lines[1:-2]) == "x" * 200_000
    assert [line["line"] for line in lines[-2:]] == ["{broken", "[1]"]


# Money, platform, schemas --------------------------------------------------------------------------------------------


async def test_bills_take_iso_times_and_epoch_seconds(api: Served) -> None:
    bill = await api.get("/bill", by="label:team", since="2026-01-01T00:00:00Z", until="1767229200.5")
    assert bill == {"by": "label:team", "since_ns": 1_767_225_600 * 10**9, "until_ns": 1_767_229_200_500_000_000}
    assert (await api.get("/bill")) == {"by": "deployment", "since_ns": None, "until_ns": None}
    refusal(await api.client.get("/api/v1/bill?since=yesterday"), 400, "bad_request")
    text = await api.client.get("/api/v1/bill.csv")
    assert (text.headers["content-type"], text.text) == ("text/csv; charset=utf-8", "currency,group\n")
    assert await api.get("/bill/verify") == {"ok": True}


async def test_one_request_can_be_looked_up(api: Served) -> None:
    assert await api.get("/requests/abcdefgh-1") == {"id": "abcdefgh-1"}
    refusal(await api.client.get("/api/v1/requests/abcdefgh-2"), 404, "not_found")


async def test_platform_says_what_it_holds(api: Served) -> None:
    await api.deploy()
    answer = await api.get("/platform")
    assert (answer["version"], answer["deployments"], answer["changing"]) == ("0", 1, {})
    assert answer["store"]["used_bytes"] == 5


async def test_openapi_has_every_route_and_resolves_in_itself(api: Served) -> None:
    document = await api.get("/openapi.json")
    operations = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert ("post", "/api/v1/deployments") in operations
    assert len(operations) == 17
    for methods in document["paths"].values():
        for operation in methods.values():
            assert operation["summary"].endswith(".")
    text = json.dumps(document)
    for reference in set(text.split('"$ref": "#/components/schemas/')[1:]):
        assert reference.split('"')[0] in document["components"]["schemas"]
    body = {"$ref": "#/components/schemas/DeployBody", "components": document["components"]}
    jsonschema.validate(deploy_json(), body)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"spec": {"name": "x", "idel": 1}, "model": {}}, body)


async def test_the_schema_of_serve_yaml_is_served(api: Served) -> None:
    assert "idle" in (await api.get("/schema"))["properties"]
