"""What the benchmarks compare with is real: the models, the floors, the way figures are read."""

from __future__ import annotations

import json
import urllib.request

import numpy as np
import onnxruntime
import pytest

from benchmarks import floor, load, table
from benchmarks.bodies import Body, binary_body, json_body
from benchmarks.cold_start import server_timing
from benchmarks.models import Model, model, resnet50, tiny

WRK = """Running 3s test @ http://127.0.0.1:1/
  1 threads and 8 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   767.14us  122.83us   2.50ms   93.74%
    Req/Sec    10.49k   342.55    10.92k    87.10%
  Latency Distribution
     50%  753.00us
     75%  781.00us
     90%    0.85ms
     99%    1.26ms
  32342 requests in 3.10s, 7.28MB read
Requests/sec:  10433.46
Transfer/sec:      2.35MB
"""


def test_the_tiny_model_maps_64_to_16_in_batches_of_any_size() -> None:
    session = onnxruntime.InferenceSession(tiny(), providers=["CPUExecutionProvider"])
    for rows in (1, 7):
        [y] = session.run(None, {"x": np.ones((rows, 64), np.float32)})
        assert y.shape == (rows, 16)


def test_resnet50_has_the_weights_of_resnet50_and_answers_finite_numbers() -> None:
    made = resnet50()
    assert 95e6 < len(made) < 110e6
    session = onnxruntime.InferenceSession(made, providers=["CPUExecutionProvider"])
    [y] = session.run(None, {"x": np.random.default_rng(0).random((2, 3, 224, 224), dtype=np.float32)})
    assert y.shape == (2, 1000)
    assert np.isfinite(y).all()
    assert y.std() > 0.01


def test_the_models_are_the_same_at_every_making() -> None:
    assert tiny() == tiny()


@pytest.fixture(scope="module")
def digits() -> Model:
    return model("digits")


def test_the_cold_floor_is_a_time(digits: Model) -> None:
    assert floor.cold_ms(digits) > 0


def test_the_hot_floor_answers_what_the_model_says_in_both_encodings(digits: Model) -> None:
    session = onnxruntime.InferenceSession(digits.path, providers=["CPUExecutionProvider"])
    with floor.hot_server(digits) as url:
        sent, encodings = json_body(digits), [json_body(digits), binary_body(digits)]
        rounded = np.array(json.loads(sent.data)["inputs"][0]["data"], np.float32).reshape(1, 64)
        as_json, as_binary = (post(url, body) for body in encodings)
    label, probabilities = session.run(None, {"pixels": rounded})
    outputs = json.loads(as_json)["outputs"]
    assert outputs[0] == {"name": "label", "datatype": "INT64", "shape": [1], "data": label.tolist()}
    assert np.allclose(outputs[1]["data"], probabilities.ravel())
    label, probabilities = session.run(None, {"pixels": digits.sample})
    assert as_binary.endswith(label.tobytes() + probabilities.tobytes())


def post(url: str, body: Body) -> bytes:
    request = urllib.request.Request(url, body.data, body.headers)
    with urllib.request.urlopen(request, timeout=20) as response:
        answer: bytes = response.read()
        return answer


def test_what_wrk_prints_is_read_with_its_units() -> None:
    assert load.parse(WRK) == load.Round(10433.46, 0.753, 1.26)


def test_quantiles_are_observed_values() -> None:
    values = [float(value) for value in range(1, 31)]
    assert table.quantile(values, 0.95) == 29
    assert table.quantile(values, 1) == 30
    assert table.quantile([5.0], 0.5) == 5


def test_phases_are_read_from_server_timing() -> None:
    assert server_timing("queue;dur=0.4, spawn;dur=1.25, cached") == {"queue": 0.4, "spawn": 1.25}


def test_a_table_is_markdown() -> None:
    assert table.table(("a", "b"), [("x", "1")]) == "| a | b |\n| --- | ---: |\n| x | 1 |"
