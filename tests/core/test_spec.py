"""`DeploymentSpec` and its published JSON schema accept and refuse the same things."""

from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from serve.core.events import LoadOrder, decode_load, encode_load
from serve.core.spec import DeploymentSpec, json_schema

ACCEPTED: list[dict[str, Any]] = [
    {},
    {"min": 1, "max": 1},
    {"idle": 0},
    {"idle": 1.5},
    {"idle": "60s"},
    {"idle": "5"},
    {"idle": "5m"},
    {"idle": "1h30m"},
    {"idle": "1.5h"},
    {"queue_bytes": 0},
    {"queue_bytes": "256MiB"},
    {"queue_bytes": "1 GB"},
    {"labels": {"team": "vision", "cost-centre/2026": ""}},
    {"engine": "onnx", "engine_settings": {"graph_optimization": "all", "deep": {"er": [1, 2]}}},
    {"concurrency": 64, "max_batch": 1, "threads": 2, "target": 1, "queue": 0},
    {"timeout": "1s", "execution_timeout": "1s", "start_timeout": "1s"},
    {"stable_window": "10s", "panic_window": 10},
]
REFUSED: list[dict[str, Any]] = [
    {"idel": 60},
    {"min": -1},
    {"min": "many"},
    {"max": 0},
    {"idle": -1},
    {"idle": [60]},
    {"idle": 10**9},
    {"idle": "soon"},
    {"panic_window": 0.01},
    {"queue_bytes": -1},
    {"queue_bytes": "big"},
    {"timeout": 0},
    {"target": 0},
    {"target": 1.1},
    {"queue": 10**7},
    {"max_batch": 0},
    {"threads": 0},
    {"engine": "ONNX!"},
    {"engine_settings": 1},
    {"labels": {"two words": "x"}},
    {"labels": {"team": "x" * 64}},
    {"labels": {str(number): "" for number in range(33)}},
    {"stable_window": 0.5},
]


def spec(**fields: Any) -> DeploymentSpec:
    return DeploymentSpec(**{"name": "digits"} | fields)


def conforms(document: dict[str, Any]) -> bool:
    validator = jsonschema.Draft202012Validator(json_schema())
    return not list(validator.iter_errors(document))


def test_the_schema_is_a_valid_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("fields", ACCEPTED, ids=str)
def test_what_the_spec_accepts_the_schema_accepts(fields: dict[str, Any]) -> None:
    spec(**fields)
    assert conforms(fields)
    assert conforms({"name": "digits", "model": "model.onnx"} | fields)


@pytest.mark.parametrize("fields", REFUSED, ids=str)
def test_what_the_schema_refuses_the_spec_refuses(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        spec(**fields)
    assert not conforms(fields)


def test_the_schema_holds_only_words_that_validators_know() -> None:
    assert not {"ge", "le", "gt", "lt"} & {
        word for known in json_schema()["properties"].values() for word in words(known)
    }


def words(schema: dict[str, Any]) -> set[str]:
    return set(schema).union(*(words(part) for part in schema.get("anyOf", ())))


def test_every_field_of_the_spec_is_described() -> None:
    properties = json_schema()["properties"]
    assert set(properties) == {*DeploymentSpec.model_fields, "model"}
    assert [key for key, known in properties.items() if not known.get("description")] == []


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("60s", 60), ("5m", 300), ("1h30m", 5400), ("2 minutes", 120), ("0.5s", 0.5), ("1.5h", 5400), ("90", 90), (7, 7)],
)
def test_durations_are_read_as_people_write_them(written: Any, seconds: float) -> None:
    assert spec(idle=written).idle == seconds


@pytest.mark.parametrize("written", ["", "soon", "5 parsecs", "s", "-5s", "31 days", "nan", "inf"])
def test_what_is_no_duration_is_refused(written: str) -> None:
    with pytest.raises(ValidationError):
        spec(idle=written)


def test_a_refused_duration_names_the_remedy() -> None:
    with pytest.raises(ValidationError, match="write 60s, 5m or 1h30m"):
        spec(idle="soon")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(value: float) -> None:
    for field in ("idle", "timeout", "target"):
        with pytest.raises(ValidationError):
            spec(**{field: value})


@pytest.mark.parametrize(
    ("written", "size"), [("256MiB", 256 << 20), ("1GB", 10**9), ("1 kib", 1024), (5, 5), ("5", 5)]
)
def test_sizes_are_read_as_people_write_them(written: Any, size: int) -> None:
    assert spec(queue_bytes=written).queue_bytes == size


@pytest.mark.parametrize("written", ["big", "-1", "1 XB"])
def test_what_is_no_size_is_refused(written: str) -> None:
    with pytest.raises(ValidationError):
        spec(queue_bytes=written)


def test_a_maximum_below_the_minimum_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"max \(1\) is below min \(2\)"):
        spec(min=2, max=1)


def test_a_panic_window_longer_than_the_stable_one_is_refused() -> None:
    with pytest.raises(ValidationError, match="panic_window is longer"):
        spec(stable_window="5s", panic_window="6s")


@pytest.mark.parametrize("name", ["ready", "a b", ""])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        spec(name=name)


def test_a_name_is_needed() -> None:
    with pytest.raises(ValidationError, match="name"):
        DeploymentSpec.model_validate({})


def test_a_spec_never_changes() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        spec().min = 1  # type: ignore[misc]


def test_a_spec_survives_its_json() -> None:
    made = spec(idle="5m", queue_bytes="1MiB", labels={"team": "vision"}, max=3, engine_settings={"a": [1]})
    assert DeploymentSpec.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", {"\ud800": 1}])
def test_engine_settings_that_would_not_come_back_the_same_are_refused(value: Any) -> None:
    with pytest.raises(ValidationError, match="plain JSON"):
        spec(engine_settings={"a": [value]})


@pytest.mark.parametrize("depth", [100, 250, 300, 5000])
def test_engine_settings_nest_as_deep_as_they_can_be_sent_or_are_refused(depth: int) -> None:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    try:
        made = spec(engine_settings={"a": value})
    except ValidationError:
        assert depth > 200
        return
    order = LoadOrder("d-r1-a", "d", 1, "/", "m", "onnx", settings=made.engine_settings)
    assert DeploymentSpec.model_validate_json(made.model_dump_json()) == made
    assert decode_load(encode_load(order)) == order


def test_concurrency_follows_from_batching_unless_given() -> None:
    assert spec(max_batch=16).concurrency_for(batchable=True) == 32
    assert spec(max_batch=16).concurrency_for(batchable=False) == 1
    assert spec(concurrency=5).concurrency_for(batchable=True) == 5
