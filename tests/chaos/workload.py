"""What is deployed, what is asked, and how a right answer is told from a wrong one.

Every request carries numbers of its own, so an answer that belongs to another is seen at once.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import orjson

from tests.e2e.models import doubling

FACTOR = 2
WIDE = 51_200
"""Values of a wide row: 200 KiB."""
RAISE, REJECT = 13, 14
"""First values that make a scripted model fail, and refuse."""
_FIRST_VALUE, _VALUES = 100, 1 << 21
"""Twice any of these is exact in FP32."""
_FILL = struct.pack("<f", 0.5) * (WIDE - 2)
_FILL_DOUBLED = struct.pack("<f", 0.5 * FACTOR) * (WIDE - 2)


@dataclass(frozen=True)
class Deployed:
    """One deployment of the scenario. `share`: of the requests of clients that are no nappers."""

    name: str
    share: float
    columns: int = 4
    is_onnx: bool = False
    script: dict[str, Any] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """Write model and serve.yaml; return the path of the yaml."""
        folder.mkdir(parents=True)
        if self.is_onnx:
            onnx.save(doubling(), folder / "model.onnx")
            settings: dict[str, Any] = {"model": "model.onnx", "engine": "onnx"}
        else:
            tensors = [{"input": "x", "output": "y", "datatype": "FP32", "shape": [-1, self.columns]}]
            actions = {str(RAISE): "raise", str(REJECT): "reject"}
            script = {"factor": FACTOR, "tensors": tensors, "on_value": actions} | self.script
            (folder / "model.json").write_text(json.dumps(script))
            settings = {"model": "model.json", "engine": "scripted"}
        windows = {"stable_window": 4, "panic_window": 1}
        path = folder / "serve.yaml"
        path.write_text(json.dumps(settings | windows | {"name": self.name, "idle": 2} | self.spec))
        return path


NAP = Deployed("nap", 0.0, script={"load_s": 0.1}, spec={"idle": 0.2})
"""Goes to zero all the time."""
STEADY = Deployed("steady", 0.2, script={"run_s": 0.002}, spec={"min": 1})
"""Is never at zero until it is undeployed."""
DEPLOYED = (
    Deployed("echo", 0.42),
    Deployed("double", 0.3, columns=2, is_onnx=True),
    STEADY,
    Deployed("wide", 0.04, columns=WIDE),
    Deployed("slow", 0.04, script={"batchable": False, "run_s": 0.01, "load_s": 0.2}, spec={"max": 3}),
    NAP,
)


class Expected(NamedTuple):
    """What is a right end of a request: a status with this check of headers and body, or a refusal of these codes."""

    status: int
    is_right: Callable[[dict[bytes, bytes], bytes], bool]
    codes: frozenset[str] = frozenset()


class Asked(NamedTuple):
    """One request as bytes, but for the client id, which stands at `%b`."""

    head: bytes
    body: bytes
    expected: Expected

    def wire(self, client_id: str) -> bytes:
        return self.head % client_id.encode() + self.body


def normal(deployed: Deployed, number: int, chance: random.Random) -> Asked:
    """Return a request that must be answered 200 with its own numbers doubled. JSON or binary at random."""
    value = float(_FIRST_VALUE + number % _VALUES)
    if deployed.columns == WIDE:
        return _asked(deployed, *_binary(_wide(value), (1, WIDE)), Expected(200, _binary_is(_wide_doubled(value))))
    rows = chance.choice((1, 1, 1, 2, 5))
    values = [value + 0.25 * at for at in range(rows * deployed.columns)]
    doubled = [FACTOR * each for each in values]
    shape = (rows, deployed.columns)
    if chance.random() < 0.5:
        return _asked(deployed, *_json(values, shape), Expected(200, _json_is(doubled)))
    packed = struct.pack(f"<{len(values)}f", *values)
    expected = struct.pack(f"<{len(doubled)}f", *doubled)
    return _asked(deployed, *_binary(packed, shape), Expected(200, _binary_is(expected)))


def hasty(deployed: Deployed, number: int, chance: random.Random) -> Asked:
    """Return a request that may be told that no replica was there in time."""
    asked = normal(deployed, number, chance)
    head = asked.head.replace(b"\r\n\r\n", b"\r\nprefer: wait=%.3f\r\n\r\n" % chance.uniform(0, 0.05))
    return asked._replace(head=head, expected=asked.expected._replace(codes=frozenset({"queue_timeout"})))


def wrong(deployed: Deployed, chance: random.Random) -> Asked:
    """Return a request that a replica answers with an error: the model's own, or for what was asked."""
    kind = chance.randrange(3)
    if deployed.is_onnx or deployed.columns == WIDE or kind == 0:
        body = json.dumps({"inputs": [{"name": "z", "shape": [1], "datatype": "FP32", "data": [1]}]}).encode()
        return _asked(deployed, body, b"", Expected(400, _is_error))
    first, status = ((RAISE, 500), (REJECT, 400))[kind - 1]
    values = [float(first)] * deployed.columns
    return _asked(deployed, *_json(values, (1, deployed.columns)), Expected(status, _is_error))


def _asked(deployed: Deployed, body: bytes, lines: bytes, expected: Expected) -> Asked:
    head = (
        b"POST /v2/models/%b/infer HTTP/1.1\r\nhost: localhost\r\nx-request-id: %%b\r\n%bcontent-length: %d\r\n\r\n"
        % (deployed.name.encode(), lines, len(body))
    )
    return Asked(head, body, expected)


def _json(values: list[float], shape: tuple[int, int]) -> tuple[bytes, bytes]:
    tensor = {"name": "x", "shape": list(shape), "datatype": "FP32", "data": values}
    return orjson.dumps({"inputs": [tensor]}), b""


def _binary(packed: bytes, shape: tuple[int, int]) -> tuple[bytes, bytes]:
    size = {"binary_data_size": len(packed)}
    tensor = {"name": "x", "shape": list(shape), "datatype": "FP32", "parameters": size}
    head = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    return head + packed, b"inference-header-content-length: %d\r\n" % len(head)


def _wide(value: float) -> bytes:
    return struct.pack("<f", value) + _FILL + struct.pack("<f", value + 1)


def _wide_doubled(value: float) -> bytes:
    return struct.pack("<f", FACTOR * value) + _FILL_DOUBLED + struct.pack("<f", FACTOR * (value + 1))


def _json_is(values: list[float]) -> Callable[[dict[bytes, bytes], bytes], bool]:
    return lambda _headers, body: orjson.loads(body)["outputs"][0]["data"] == values


def _binary_is(packed: bytes) -> Callable[[dict[bytes, bytes], bytes], bool]:
    return lambda headers, body: body[int(headers[b"inference-header-content-length"]) :] == packed


def _is_error(_headers: dict[bytes, bytes], body: bytes) -> bool:
    return bool(orjson.loads(body)["error"])
