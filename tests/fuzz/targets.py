"""All targets by name."""

from __future__ import annotations

from tests.fuzz import books, doors, settings, tensors, wire
from tests.fuzz.target import Target

TARGETS: dict[str, Target] = {
    target.name: target for module in (wire, tensors, books, settings, doors) for target in module.TARGETS
}
