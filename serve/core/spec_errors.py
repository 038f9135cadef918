"""What is wrong with settings: one sentence that names each setting and the remedy, for `/api/v1` and the command."""

from __future__ import annotations

import json
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from serve.core.spec import DeploymentSpec

_REMEDIES = {
    "int_parsing": "give a whole number",
    "int_type": "give a whole number",
    "int_from_float": "give a whole number",
    "float_parsing": "give a number",
    "float_type": "give a number",
    "finite_number": "give a finite number",
    "bool_parsing": "give true or false",
    "bool_type": "give true or false",
    "string_type": "give text",
    "dict_type": "give keys and values",
    "greater_than": "give more than {gt}",
    "greater_than_equal": "give {ge} or more",
    "less_than": "give less than {lt}",
    "less_than_equal": "give {le} or less",
    "byte_size": "give bytes, or a size such as 256MiB",
    "byte_size_unit": "give bytes, or a size such as 256MiB",
    "too_long": "give at most {max_length}",
    "string_too_long": "give at most {max_length} characters",
    "string_pattern_mismatch": "give text of the form {pattern}",
}
"""By pydantic's type of a problem; the others keep pydantic's words."""


def sentence(error: ValidationError) -> str:
    """Return all that is wrong as one sentence; `spec.idle` is called `idle`, as its flag is."""
    return "; ".join(_part(problem) for problem in error.errors(include_url=False))


def _part(problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    field = _line(".".join(location[1:] if location[:1] == ["spec"] else location).removesuffix(".[key]"))
    kind = problem["type"]
    context = {
        key: f"{value:.12g}" if isinstance(value, float) else value for key, value in problem.get("ctx", {}).items()
    }
    if kind == "missing":
        return f"{field or 'spec'} is missing: give it a value"
    if kind == "extra_forbidden":
        return f"{field} is not a setting: {_right_name(field)}"
    if kind == "value_error":
        return f"{field}: {context['error']}" if field else str(context["error"])
    message = problem["msg"]
    remedy = _REMEDIES[kind].format(**context) if kind in _REMEDIES else f"{message[:1].lower()}{message[1:]}"
    return f"{field or 'the body'} is {_shown(problem['input'])}: {remedy}"


def _right_name(field: str) -> str:
    close = get_close_matches(field, DeploymentSpec.model_fields, n=1)
    return f"did you mean {close[0]}?" if close else "remove it, or see docs/serve-yaml.md for the right name"


def _line(name: str) -> str:
    """Return a caller's own key as it can stand in a line."""
    return "".join(letter if letter.isprintable() else "?" for letter in name[:80])


def _shown(value: Any) -> str:
    """Return what was given, shortly. What is in lists and objects is not looked at: it may nest without end."""
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "…"
