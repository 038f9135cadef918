"""The digits example is what its README says."""

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

FOLDER = Path(__file__).parents[2] / "examples" / "digits"


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(FOLDER / "model.onnx", providers=["CPUExecutionProvider"])


def ask(session: onnxruntime.InferenceSession, request: dict[str, Any]) -> list[int]:
    [tensor] = request["inputs"]
    pixels = np.array(tensor["data"], np.float32)
    assert (tensor["name"], tensor["datatype"], tensor["shape"]) == ("pixels", "FP32", list(pixels.shape))
    return [int(label) for label in session.run(["label"], {"pixels": pixels})[0]]


def test_the_model_is_small_and_takes_batches_of_any_size(session: onnxruntime.InferenceSession) -> None:
    assert (FOLDER / "model.onnx").stat().st_size < 300_000
    tensors = [(t.name, t.type, t.shape) for t in [*session.get_inputs(), *session.get_outputs()]]
    assert tensors == [
        ("pixels", "tensor(float)", ["batch", 64]),
        ("label", "tensor(int64)", ["batch"]),
        ("probabilities", "tensor(float)", ["batch", 10]),
    ]
    label, probabilities = session.run(None, {"pixels": np.full((5, 64), 8, np.float32)})
    assert label.shape == (5,)
    assert probabilities.shape == (5, 10)
    assert np.allclose(probabilities.sum(axis=1), 1)


def test_the_scan_of_a_three_is_read_as_three(session: onnxruntime.InferenceSession) -> None:
    assert ask(session, json.loads((FOLDER / "three.json").read_text())) == [3]


def test_the_committed_requests_are_answered_as_truthfully_as_the_readme_says(
    session: onnxruntime.InferenceSession,
) -> None:
    requests = [json.loads(line) for line in (FOLDER / "requests.jsonl").read_text().splitlines()]
    truth = json.loads((FOLDER / "answers.json").read_text())
    assert len(requests) == len(truth) >= 20
    pairs = [
        (said, true)
        for request, answer in zip(requests, truth, strict=True)
        for said, true in zip(ask(session, request), answer, strict=True)
    ]
    assert len(pairs) == 38
    assert sum(said != true for said, true in pairs) == 1


def test_training_again_makes_a_model_that_reads_like_the_committed_one(
    session: onnxruntime.InferenceSession,
) -> None:
    script = runpy.run_path(str(FOLDER / "train.py"))
    pixels, digits = load_digits(return_X_y=True)
    pixels = pixels.astype(np.float32)
    train_x, test_x, train_y, test_y = train_test_split(
        pixels, digits, test_size=0.25, random_state=script["SEED"], stratify=digits
    )
    again = onnxruntime.InferenceSession(script["export"](script["train"](train_x, train_y)))
    made = again.run(["label"], {"pixels": test_x})[0]
    committed = session.run(["label"], {"pixels": test_x})[0]
    assert np.mean(committed == test_y) > 0.97
    # Another processor may round differently: a scan on the edge may flip, no more.
    assert np.count_nonzero(made != committed) <= 4
