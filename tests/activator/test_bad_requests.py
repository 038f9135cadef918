"""Bad input at the front door: the status, the sentence that names the remedy, and a platform unharmed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from serve.core.revision import Route, State
from tests.activator.harness import BODY, Harness, harness, infer, text


async def _ask(it: Harness, method: str, path: str, **options: Any) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.request(method, it.url + path, **options)


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "words"),
    [
        ("POST", "/v2/models/nope/infer", 404, "unknown_model", "Request for unknown model: 'nope' is not found"),
        ("GET", "/v2/models/nope", 404, "unknown_model", "Request for unknown model"),
        ("GET", "/v2/models/nope/ready", 404, "unknown_model", "Request for unknown model"),
        ("POST", "/v2/models/m/versions/9/infer", 404, "unknown_version", "versions here: 1"),
        ("POST", "/v2/models/m/versions/x/infer", 404, "unknown_version", "version x"),
        ("POST", "/v2/models/m/versions/99999999999999/infer", 404, "unknown_version", "version 9999"),
        ("GET", "/v2/models/m/infer", 405, "method_not_allowed", "POST"),
        ("POST", "/v2/models/m/ready", 405, "method_not_allowed", "GET"),
        ("PUT", "/v2", 405, "method_not_allowed", "GET"),
        ("GET", "/v2/nothing", 404, "not_found", "/v2"),
        ("POST", "/v2/models/m/dance", 404, "not_found", "Not Found"),
        ("POST", "/v2/models//infer", 404, "not_found", "Not Found"),
        ("POST", "/v2/models/m/versions/1/infer/more", 404, "not_found", "Not Found"),
    ],
)
async def test_what_is_not_there_is_refused_by_name(
    tmp_path: Path, method: str, path: str, status: int, code: str, words: str
) -> None:
    async with harness(tmp_path) as it:
        it.deploy()
        response = await _ask(it, method, path)
    body = text(response)
    assert (response.status_code, body["code"]) == (status, code)
    assert words in body["error"]
    assert body["request_id"] == response.headers["x-serve-request-id"]
    assert it.listener.pokes == []
    if status == 405:
        assert words in response.headers["allow"]


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"inference-header-content-length": "-1"}, "should be in range"),
        ({"inference-header-content-length": "ten"}, "no byte count"),
        ({"inference-header-content-length": str(len(BODY) + 1)}, f"the body has {len(BODY)} bytes"),
        ({"inference-header-content-length": "99999999999"}, "should be in range"),
    ],
)
async def test_a_wrong_inference_header_is_a_bad_request(tmp_path: Path, headers: dict[str, str], words: str) -> None:
    async with harness(tmp_path) as it:
        key = it.deploy()
        response = await _ask(it, "POST", "/v2/models/m/infer", content=BODY, headers=headers)
        assert it.router.queue_status(key) == (0, 0, 0)
    assert (response.status_code, text(response)["code"]) == (400, "bad_request")
    assert words in text(response)["error"]


async def test_a_body_that_is_compressed_as_nobody_here_knows_is_refused_as_unsupported(tmp_path: Path) -> None:
    async with harness(tmp_path) as it:
        it.deploy()
        response = await _ask(it, "POST", "/v2/models/m/infer", content=b"x", headers={"content-encoding": "br"})
    assert response.status_code == 501
    assert text(response)["error"].startswith("Unsupported compression type")


async def test_a_body_over_the_limit_is_refused_declared_or_not_and_the_connection_goes_on(tmp_path: Path) -> None:
    async with harness(tmp_path, body_limit_bytes=1000) as it, httpx.AsyncClient() as client:
        replica = await it.start(it.deploy())
        replica.auto = lambda inside: inside.answer()

        async def chunks() -> Any:
            for _ in range(5):
                yield b"y" * 300

        declared = await infer(client, it, body=b"x" * 1001)
        chunked = await client.post(f"{it.url}/v2/models/m/infer", content=chunks())
        fine = await infer(client, it)
    assert (declared.status_code, chunked.status_code, fine.status_code) == (413, 413, 200)
    assert "1001" in text(declared)["error"]


async def test_a_failed_or_unpublished_deployment_says_so(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        it.router.route(Route("new", State.PUBLISHING, (), {}))
        publishing = await infer(client, it, "new")
        ready = await client.get(f"{it.url}/v2/models/new/ready")
    assert (publishing.status_code, text(publishing)["code"]) == (503, "publishing")
    assert (ready.status_code, text(ready)["state"]) == (503, "publishing")


async def test_metadata_and_readiness_of_a_cold_model_answer_and_never_wake_it(tmp_path: Path) -> None:
    async with harness(tmp_path) as it, httpx.AsyncClient() as client:
        it.deploy()
        server = await client.get(f"{it.url}/v2")
        models = await client.get(f"{it.url}/v2/models")
        metadata = await client.get(f"{it.url}/v2/models/m")
        version = await client.get(f"{it.url}/v2/models/m/versions/1")
        ready = await client.get(f"{it.url}/v2/models/m/ready")
        head = await client.head(f"{it.url}/v2/health/ready")
    assert text(server)["extensions"] == ["binary_tensor_data"]
    assert text(models) == {"models": ["m"]}
    assert text(metadata)["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert text(metadata)["versions"] == ["1"]
    assert text(version)["platform"] == "onnxruntime_onnx"
    assert text(ready) == {"name": "m", "ready": True, "state": "cold"}
    assert head.status_code == 200
    assert it.listener.pokes == []
