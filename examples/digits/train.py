"""Train the digits classifier and write everything else in this folder: model, requests, true answers.

The data are the 1,797 real scans (8 × 8 pixels, brightness 0..16) that come with scikit-learn; a quarter is held out.
The seed is fixed and training runs on one thread, so that the same library versions on the same kind of processor
give the same file, byte for byte. Needs scikit-learn and skl2onnx: both are in `requirements/dev.txt`.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy: sums in another order have other last bits

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MaxAbsScaler

FOLDER = Path(__file__).resolve().parent
SEED = 7
REQUESTS = 30
BRIGHTEST = 16.0


def train(pixels: np.ndarray, digits: np.ndarray) -> Pipeline:
    """Return a fitted classifier of raw pixels [n, 64]: scale to 0..1, one hidden layer of 64."""
    scaler = MaxAbsScaler().fit(np.full((1, 64), BRIGHTEST, dtype=np.float32))
    network = MLPClassifier((64,), alpha=0.01, learning_rate_init=0.003, max_iter=300, random_state=SEED)
    network.fit(scaler.transform(pixels), digits)
    return Pipeline([("scale", scaler), ("network", network)])


def export(classifier: Pipeline) -> bytes:
    """Return ONNX: `pixels` FP32 [-1, 64] → `label` INT64 [-1], `probabilities` FP32 [-1, 10]."""
    model = to_onnx(
        classifier,
        initial_types=[("pixels", FloatTensorType([None, 64]))],
        options={"zipmap": False},
        target_opset=15,
        model_optim=True,
    )
    model.graph.name = "digits"
    for output, width in ((model.graph.output[0], None), (model.graph.output[1], 10)):
        shape = output.type.tensor_type.shape
        del shape.dim[:]
        shape.dim.add().dim_param = "batch"
        if width is not None:
            shape.dim.add().dim_value = width
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    return bytes(model.SerializeToString(deterministic=True))


def request(pixels: np.ndarray) -> dict[str, Any]:
    """Return the Open Inference Protocol request for scans [n, 64]."""
    rows = [[int(pixel) for pixel in row] for row in pixels]
    return {"inputs": [{"name": "pixels", "shape": [len(rows), 64], "datatype": "FP32", "data": rows}]}


def write_requests(pixels: np.ndarray, digits: np.ndarray) -> None:
    """Write held-out scans as requests, with their true answers: single ones, and a few batches of three."""
    three = int(np.flatnonzero(digits == 3)[0])
    (FOLDER / "three.json").write_text(json.dumps(request(pixels[three : three + 1])) + "\n")
    batches = [[index] for index in range(REQUESTS - 4)] + [[100 + 3 * n + k for k in range(3)] for n in range(4)]
    lines = [json.dumps(request(pixels[rows])) for rows in batches]
    (FOLDER / "requests.jsonl").write_text("\n".join(lines) + "\n")
    answers = [json.dumps([int(digits[row]) for row in rows]) for rows in batches]
    (FOLDER / "answers.json").write_text("[\n" + ",\n".join(answers) + "\n]\n")


def main() -> None:
    pixels, digits = load_digits(return_X_y=True)
    pixels = pixels.astype(np.float32)
    train_x, test_x, train_y, test_y = train_test_split(
        pixels, digits, test_size=0.25, random_state=SEED, stratify=digits
    )
    model = export(train(train_x, train_y))
    (FOLDER / "model.onnx").write_bytes(model)
    write_requests(test_x, test_y)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    labels = session.run(["label"], {"pixels": test_x})[0]
    print(f"{np.mean(labels == test_y):.1%} of {len(test_y)} held-out scans are read correctly")


if __name__ == "__main__":
    main()
