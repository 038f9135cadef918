"""The stand-in for a platform says what the real one says: its answers are held to the API's own schemas."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import urllib3

from serve.control.schemas import ANSWERS, LINES
from tests.cli.conftest import Served
from tests.cli.fake_control import DEPLOYMENT, TOKEN


@pytest.mark.parametrize(
    ("operation", "path"),
    [
        ("list_deployments", "/deployments"),
        ("status", "/deployments/digits"),
        ("history", "/deployments/digits/history"),
        ("explain", "/deployments/digits/explain"),
        ("what_if", "/deployments/digits/what-if"),
        ("bill", "/bill"),
        ("verify_bill", "/bill/verify"),
    ],
)
def test_what_it_answers_is_what_the_api_answers(served: Served, operation: str, path: str) -> None:
    served.state.deployments["digits"] = DEPLOYMENT
    jsonschema.validate(ask(served, "GET", path), ANSWERS[operation])


def test_what_it_answers_to_changes_is_what_the_api_answers(served: Served) -> None:
    served.state.deployments["digits"] = DEPLOYMENT
    jsonschema.validate(ask(served, "POST", "/deployments/digits/rollback", {"revision": 1}), ANSWERS["rollback"])
    jsonschema.validate(ask(served, "DELETE", "/deployments/digits"), ANSWERS["delete"])
    digest = "3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7"  # of b"data"
    jsonschema.validate(ask(served, "PUT", f"/blobs/{digest}", b"data"), ANSWERS["put_blob"])


@pytest.mark.parametrize("name", ["digits", "unverified", "refused", "broken"])
def test_each_line_of_a_deploy_is_one_of_the_api(served: Served, name: str) -> None:
    lines = ask(
        served, "POST", "/deployments", {"spec": {"name": name}, "model": {"url": "http://x/m.onnx"}}, is_lines=True
    )
    assert len(lines) == 4
    for line in lines:
        jsonschema.validate(line, LINES["deploy"])


def test_each_line_of_a_log_is_one_of_the_api(served: Served) -> None:
    served.state.deployments["digits"] = DEPLOYMENT
    lines = ask(served, "GET", "/deployments/digits/logs", is_lines=True)
    assert lines
    for line in lines:
        jsonschema.validate(line, LINES["logs"])


def ask(served: Served, method: str, path: str, body: Any = None, *, is_lines: bool = False) -> Any:
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    headers = {"authorization": f"Bearer {TOKEN}"}
    answer = urllib3.request(method, f"{served.url}/api/v1{path}", body=data, headers=headers, retries=False)
    assert 200 <= answer.status < 300, answer.data
    return [json.loads(line) for line in answer.data.splitlines()] if is_lines else json.loads(answer.data)
