"""What people read about a setting that cannot be."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from serve.core.spec import DeploymentSpec
from serve.core.spec_errors import sentence

CASES: list[tuple[dict[str, Any], str]] = [
    ({"max": 0}, "max is 0: give 1 or more"),
    ({"max": "many"}, 'max is "many": give a whole number'),
    ({"min": 5, "max": 2}, "max (2) is below min (5)"),
    ({"idle": "abc"}, "idle: 'abc' is not a duration: write 60s, 5m or 1h30m"),
    ({"queue_bytes": "3furlongs"}, 'queue_bytes is "3furlongs": give bytes, or a size such as 256MiB'),
    ({"queue": 10**9}, "queue is 1000000000: give 1000000 or less"),
    ({"idel": "5s"}, "idel is not a setting: did you mean idle?"),
    ({"colour": 1}, "colour is not a setting: remove it, or see docs/serve-yaml.md for the right name"),
    ({"labels": {"team": 3}}, "labels.team is 3: give text"),
    ({"target": 2, "threads": 0}, "target is 2: give 1 or less; threads is 0: give 1 or more"),
]


@pytest.mark.parametrize(("settings", "expected"), CASES)
def test_a_setting_that_cannot_be_is_named_with_its_remedy(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError) as caught:
        DeploymentSpec(name="digits", **settings)
    assert sentence(caught.value) == expected
