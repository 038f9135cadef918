"""Requests to the digits model, as its examples have them and as bytes on a wire."""

from __future__ import annotations

import json
import struct
from typing import Any

from tests.e2e.platforms import DIGITS

REQUESTS: list[dict[str, Any]] = [json.loads(line) for line in (DIGITS / "requests.jsonl").read_text().splitlines()]
ANSWERS: list[list[int]] = json.loads((DIGITS / "answers.json").read_text())
MISREAD = {15: 8}
"""The one scan of 38 that the model reads wrongly (its README says so), and what it takes it for."""
READ = [[MISREAD[at]] if at in MISREAD else answer for at, answer in enumerate(ANSWERS)]
"""What the model answers: the truth, with that exception."""
THREE: dict[str, Any] = json.loads((DIGITS / "three.json").read_text())


def labels(answer: dict[str, Any]) -> list[int]:
    """Return the labels of a JSON answer."""
    data: list[int] = next(output["data"] for output in answer["outputs"] if output["name"] == "label")
    return data


def pixels(request: dict[str, Any]) -> bytes:
    """Return the tensor of a JSON request as raw little-endian float32."""
    rows = request["inputs"][0]["data"]
    flat = [value for row in rows for value in (row if isinstance(row, list) else [row])]
    return struct.pack(f"<{len(flat)}f", *flat)


def binary(request: dict[str, Any], **changes: Any) -> tuple[bytes, dict[str, str]]:
    """Return the request with binary tensors both ways: body and headers. `changes`: keys of the one input."""
    tensor = pixels(request)
    described = {
        "name": "pixels",
        "shape": request["inputs"][0]["shape"],
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(tensor)},
    } | changes
    head = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}}).encode()
    return head + tensor, {"inference_header_content_length": str(len(head))}


def binary_labels(body: bytes, json_length: int) -> list[int]:
    """Return the labels of a binary answer."""
    at = json_length
    for output in json.loads(body[:json_length])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        if output["name"] == "label":
            return list(struct.unpack(f"<{size // 8}q", body[at : at + size]))
        at += size
    raise AssertionError("no output 'label'")
