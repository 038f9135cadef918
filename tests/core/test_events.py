"""Events and load orders: what was sent is what arrives, and nothing but EventError comes of garbage."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.core import events
from serve.core.events import (
    Drained,
    Event,
    EventError,
    Failed,
    LoadOrder,
    Phase,
    PhaseDone,
    Ready,
    Stats,
    TensorSpec,
)

NS = st.integers(0, 2**63 - 1)
TEXT = st.text(max_size=30)
SPECS = st.lists(
    st.builds(TensorSpec, TEXT, TEXT, st.lists(st.integers(-1, 10**6), max_size=5).map(tuple)), max_size=4
).map(tuple)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(PhaseDone, st.sampled_from(Phase), NS, NS),
    st.builds(Ready, NS, TEXT, TEXT, SPECS, SPECS, st.booleans(), NS, NS),
    st.builds(Failed, NS, TEXT, TEXT),
    st.builds(Drained, NS, NS),
    st.builds(Stats, NS, NS, NS, NS, NS),
)
ORDERS = st.builds(LoadOrder, TEXT, TEXT, NS, TEXT, TEXT, TEXT, NS, NS, st.dictionaries(TEXT, JSON, max_size=3))


@given(event=EVENTS)
def test_an_event_survives_the_wire(event: Event) -> None:
    found = events.decode_event(memoryview(events.encode_event(event)))
    assert found == event
    assert type(found) is type(event)


@given(order=ORDERS)
def test_a_load_order_survives_the_wire(order: LoadOrder) -> None:
    assert events.decode_load(memoryview(events.encode_load(order))) == order


@given(event=EVENTS)
def test_keys_of_a_newer_replica_are_ignored(event: Event) -> None:
    message = json.loads(events.encode_event(event)) | {"since_version_9": {"x": 1}}
    assert events.decode_event(json.dumps(message).encode()) == event


def test_a_phase_arrives_as_the_enum() -> None:
    found = events.decode_event(events.encode_event(PhaseDone(Phase.LOAD, 1, 2)))
    assert isinstance(found, PhaseDone)
    assert found.phase is Phase.LOAD


@given(data=st.binary(max_size=80) | JSON.map(lambda value: json.dumps(value).encode()))
def test_garbage_raises_event_error_and_nothing_else(data: bytes) -> None:
    for decode in (events.decode_event, events.decode_load):
        with pytest.raises(EventError):
            decode(data)


@given(event=EVENTS, key=TEXT, value=JSON)
def test_an_event_with_one_value_replaced_is_decoded_or_refused(event: Event, key: str, value: object) -> None:
    message = json.loads(events.encode_event(event))
    for name in [*message, key]:
        with contextlib.suppress(EventError):
            events.decode_event(json.dumps(message | {name: value}).encode())


@pytest.mark.parametrize(
    "message",
    [
        ["drained"],
        {"event": "drained", "at_ns": 1},
        {"event": "unheard_of"},
        {"event": ["drained"], "at_ns": 1, "total_busy_ns": 1},
        {"event": "phase", "phase": "lunch", "start_ns": 1, "end_ns": 2},
        {"event": "ready", "inputs": [1], "outputs": []},
        {"event": "drained", "at_ns": "now", "total_busy_ns": 1},
        {"event": "drained", "at_ns": 1.5, "total_busy_ns": 1},
        {"event": "drained", "at_ns": True, "total_busy_ns": 1},
    ],
)
def test_an_event_that_lacks_something_or_says_it_in_another_type_is_refused(message: object) -> None:
    with pytest.raises(EventError):
        events.decode_event(json.dumps(message).encode())


@pytest.mark.parametrize("dim", [float("inf"), float("nan"), "x", None])
def test_a_shape_that_is_no_number_is_refused(dim: object) -> None:
    ready = json.loads(events.encode_event(Ready(1, "p", "1", (TensorSpec("x", "FP32", (1,)),), (), True, 1, 1)))
    ready["inputs"][0]["shape"] = [dim]
    with pytest.raises(EventError):
        events.decode_event(json.dumps(ready).encode())


def test_deeply_nested_json_is_refused() -> None:
    with pytest.raises(EventError):
        events.decode_event(b"[" * 100_000)
