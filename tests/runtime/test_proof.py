"""Rows of different requests never mix, whatever the shapes of a model promise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.decode import InferRequest
from runtime.proof import BatchProof, agree
from runtime.tensors import DATATYPES, Array, join
from tests.runtime import models
from tests.runtime.echo import EchoModel
from tests.runtime.peer import Answer, Peer, request, scripted


def burst(peer: Peer, first: int, *values: float) -> list[Answer]:
    """Send one request of two rows for each value, at once."""
    streams = range(first, first + len(values))
    return peer.ask(*[request(n, v, v + 1) for n, v in zip(streams, values, strict=True)], streams=streams)


@pytest.mark.parametrize(
    ("op", "attributes"), [("CumSum", {}), ("Softmax", {"axis": 0}), ("LpNormalization", {"axis": 0})]
)
@pytest.mark.parametrize("values", [(1, 1, 1), (1, 2, 3)])
def test_a_model_whose_first_axis_is_no_batch_answers_each_request_as_if_it_were_alone(
    tmp_path: Path, op: str, attributes: dict[str, Any], values: tuple[float, ...]
) -> None:
    with Peer(tmp_path) as peer:
        peer.load(models.order(tmp_path, models.mixing(op, **attributes)))
        alone = [peer.ask(request(n, v, v + 1), streams=(n,))[0].data for n, v in enumerate(values, 1)]
        for first in (11, 21):
            answers = burst(peer, first, *values)
            assert [answer.data for answer in answers] == alone
            assert {answer.usage.batch_rows for answer in answers} == {2}
        assert peer.log_file.read_text().count("batching is switched off") == 1


def test_equal_requests_prove_nothing_for_different_ones(tmp_path: Path) -> None:
    with Peer(tmp_path) as peer:
        # Zeros stay zeros in whatever company: mixing shows only once rows differ.
        peer.load(models.order(tmp_path, models.mixing("LpNormalization", axis=0, p=1)))
        alone = peer.ask(request(1, 0, 1))[0].data
        assert [answer.data for answer in peer.ask(request(2, 0), request(3, 0), streams=(2, 3))] == [[0, 0]] * 2
        assert burst(peer, 4, 0, 5)[0].data == alone


def test_a_model_that_keeps_rows_apart_is_joined_from_the_first_batch_on(tmp_path: Path) -> None:
    with Peer(tmp_path) as peer:
        peer.load(scripted(tmp_path))
        for first in (1, 11):
            assert {answer.usage.batch_rows for answer in burst(peer, first, 1, 2, 3)} == {6}
        assert "batching is switched off" not in peer.log_file.read_text()


def test_what_is_proven_costs_nothing_any_more() -> None:
    model, ran = EchoModel(("FP32", [-1])), 0

    def ask(value: float) -> InferRequest:
        return model.decode({"inputs": [{"name": "in_0", "datatype": "FP32", "shape": [1], "data": [value]}]})

    def alone(member: InferRequest) -> dict[str, Array]:
        nonlocal ran
        ran += 1
        return {"out_0": join(DATATYPES["FP32"], member.parts, (1,))}

    proof, costs = BatchProof(), []
    for values in ([5, 5], [5, 5], [1, 2, 3], [1, 2, 3], [5, 5], [2, 1]):
        proof.check([ask(value) for value in values], {"out_0": np.array(values, np.float32)}, alone)
        costs.append(ran)
    assert costs == [2, 2, 4, 4, 4, 4]


@pytest.mark.parametrize(
    ("joined", "alone", "same"),
    [
        ([1.0, 2.0], [1.0, 2.00001], True),
        ([1.0, 2.0], [1.0, 2.2], False),
        ([np.nan, np.inf], [np.nan, np.inf], True),
        ([np.nan], [1.0], False),
        ([np.inf], [-np.inf], False),
        ([0.0], [0.0], True),
        ([1e-9], [0.0], False),
        ([[1.0]], [1.0], False),
        ([1, 2], [1, 3], False),
        ([True], [True], True),
        ([b"a"], [b"a"], True),
        (["a"], ["b"], False),
        ([], [], True),
    ],
)
def test_outputs_agree_but_for_rounding(joined: Any, alone: Any, same: bool) -> None:
    def array(values: Any) -> Any:
        text = values and isinstance(values[0], bytes | str)
        return np.array(values, dtype=object) if text else np.array(values)

    assert agree(array(joined), array(alone)) is same
