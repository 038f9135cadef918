"""`/api/v1` of a real platform, called in every way its own OpenAPI document allows, and in many that it does not."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
from typing import Any
from urllib.parse import urlsplit

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks as documented

from tests.e2e.platforms import DIGITS, RunningPlatform

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "8"))
"""Of each operation; more where `python -m tests.fuzz all` asks for them."""
CHECKS = [
    not_a_server_error,
    documented.status_code_conformance,
    documented.content_type_conformance,
    documented.response_schema_conformance,
    documented.response_headers_conformance,
    documented.negative_data_rejection,
    documented.unsupported_method,
]
"""Not that valid input is accepted: the document cannot say which deployments there are. Tokens have a test below."""
QUICK = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
_BYTES = (DIGITS / "model.onnx").read_bytes()
_FILE = {"path": "model.onnx", "size": len(_BYTES), "sha256": hashlib.sha256(_BYTES).hexdigest()}
MODEL = {"file": "model.onnx", "files": [_FILE]}
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def operations(platform: RunningPlatform) -> dict[str, Any]:
    schema: Any = schemathesis.openapi.from_dict(platform.get("/openapi.json"))
    schema.config.update(base_url=platform.info.admin_url)
    return {found.ok().label: found.ok() for found in schema.get_all_operations()}


def test_every_operation_answers_as_its_document_says(platform: RunningPlatform, operations: dict[str, Any]) -> None:
    assert len(operations) >= 16
    headers = {"authorization": f"Bearer {platform.home.token()}"}
    for operation in operations.values():

        @QUICK
        @given(case=operation.as_strategy(), is_known=st.booleans())
        def answered(case: Any, is_known: bool) -> None:
            if is_known and "name" in (case.path_parameters or {}) and case.method != "DELETE":
                case.path_parameters["name"] = "digits"
            if case.query:
                case.query.pop("follow", None)  # for as long as the caller stays
            answer = case.call(headers=headers, timeout=20)
            case.validate_response(answer, checks=CHECKS, headers=headers)
            if answer.status_code >= 400:
                check_refusal(answer.json(), answer.headers["x-serve-request-id"])

        answered()
    assert [line["name"] for line in platform.get("/deployments")["deployments"]] == ["digits"]


def check_refusal(body: dict[str, Any], request_ids: list[str]) -> None:
    assert set(body) >= {"error", "code", "request_id"}
    assert [body["request_id"]] == request_ids
    assert "Traceback" not in body["error"]


@pytest.mark.parametrize(
    "token", [None, "", "Bearer", "Bearer ", "Bearer x", "Basic dTpw", "Bearer \xe9", "bearer  \t"]
)
def test_no_operation_answers_without_the_token(
    platform: RunningPlatform, operations: dict[str, Any], token: str | None
) -> None:
    parts = urlsplit(platform.info.admin_url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    for label in operations:
        method, _, path = label.partition(" ")
        headers = {} if token is None else {"authorization": token}
        connection.request(method, path.replace("{name}", "digits"), headers=headers)
        answer = connection.getresponse()
        body = json.loads(answer.read())
        assert (answer.status, body["code"]) == (401, "unauthorized"), label
    connection.close()


@given(
    steps=st.lists(
        st.sampled_from(
            ["deploy", "other", "unchanged", "status", "rollback", "rollback 1", "history", "delete", "infer"]
        ),
        min_size=3,
        max_size=12,
    )
)
@settings(
    max_examples=6, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
)
def test_a_deployment_goes_through_its_life_in_any_order(platform: RunningPlatform, steps: list[str]) -> None:
    """Each step is done, or refused for what the deployment is at that moment; nothing is ever our fault."""
    revisions = 0
    is_there = False
    for count, step in enumerate(steps):
        status, revision = act(platform, step, count)
        if step in ("deploy", "other", "unchanged"):
            assert status == 200
            is_there, revisions = True, max(revisions, revision)
        elif not is_there:
            assert status == 404, step
        elif step.startswith("rollback"):
            assert status in (200, 404)
        else:
            assert status == 200, step
            is_there = step != "delete"
    platform.api("DELETE", "/deployments/chain")
    assert platform.api("GET", "/deployments/chain").status_code == 404
    assert "Traceback" not in platform.log()


def act(platform: RunningPlatform, step: str, count: int) -> tuple[int, int]:
    """Do one step. Return its status and, where there is one, the revision."""
    path = "/deployments/chain"
    if step in ("deploy", "other", "unchanged"):
        flags = {"deploy": f"{count + 1}s", "other": f"{count + 1}m", "unchanged": "30s"}
        document = {"spec": {"name": "chain", "idle": flags[step]}, "model": MODEL}
        answer = platform.api("POST", "/deployments", json=document)
        end = json.loads(answer.text.splitlines()[-1])
        assert end["event"] == "deployed", end
        return answer.status_code, end["receipt"]["revision"]
    if step == "infer":
        return platform.infer("chain", (DIGITS / "three.json").read_bytes()).status_code, 0
    if step.startswith("rollback"):
        wanted = step.partition(" ")[2]
        body = {"revision": int(wanted)} if wanted else {}
        return platform.api("POST", path + "/rollback", json=body).status_code, 0
    method, path = {"status": ("GET", path), "history": ("GET", path + "/history"), "delete": ("DELETE", path)}[step]
    return platform.api(method, path).status_code, 0
