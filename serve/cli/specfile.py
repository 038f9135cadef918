"""`serve.yaml` and the flags of `serve deploy`, merged and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from serve.cli.failure import CommandError, ExitCode, usage
from serve.core.home import user_path
from serve.core.ids import check_name, default_name


def read_document(path: str | None) -> dict[str, Any]:
    """Return what `serve.yaml` says; {} without a file. A relative `model` counts from the file's folder."""
    if path is None:
        return {}
    from serve.core.yaml_file import YamlError, read_yaml

    try:
        document = read_yaml(user_path(path))
    except OSError as error:
        raise usage(f"cannot read '{path}' ({error.strerror})") from error
    except YamlError as error:
        raise usage(f"'{path}' is not YAML that can be used: {error}") from error
    if document is None:
        return {}
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise usage(f"'{path}' must hold keys and values, such as `idle: 60s` (docs/serve-yaml.md)")
    model = document.get("model")
    if isinstance(model, str) and not is_url(model):
        document["model"] = str(user_path(path).absolute().parent / user_path(model))
    return document


def merge(
    document: Mapping[str, Any],
    flags: Mapping[str, Any],
    labels: Sequence[str],
    engine_settings: Sequence[str],
) -> dict[str, Any]:
    """Return the spec: keys of the file, over them the flags that were given (None = not given)."""
    spec = {key: value for key, value in document.items() if key != "model"}
    spec |= {key: value for key, value in flags.items() if value is not None}
    pairs = {
        "labels": dict(pair(text, "--label") for text in labels),
        "engine_settings": {
            key: _value(value) for key, value in (pair(t, "--engine-setting") for t in engine_settings)
        },
    }
    for key, given in pairs.items():
        if given:
            known = spec.get(key)
            spec[key] = (known if isinstance(known, dict) else {}) | given
    return spec


def check(spec: Mapping[str, Any]) -> None:
    """Raise CommandError (exit code 2) where the settings cannot be: no platform is needed, or started, to say so.

    Imported here, because the one meaning of settings is a pydantic model and only a deploy pays for that.
    """
    from pydantic import ValidationError

    from serve.core.spec import DeploymentSpec
    from serve.core.spec_errors import sentence

    try:
        DeploymentSpec.model_validate(spec)
    except ValidationError as error:
        raise CommandError("invalid_spec", sentence(error), exit_code=ExitCode.USAGE) from None
    except UnicodeEncodeError:
        problem = "a setting holds a lone surrogate, or bytes that are no UTF-8: give text"
        raise CommandError("invalid_spec", problem, exit_code=ExitCode.USAGE) from None


def choose_name(spec: Mapping[str, Any], model: str) -> str:
    """Return the deployment's name: the given one, or what the model's path says. Raises CommandError."""
    name = spec.get("name")
    if name is None:
        name = default_name(model)
        if not name:
            raise usage(f"'{model}' gives no name for the deployment: choose one with --name")
    try:
        return check_name(str(name))
    except ValueError as error:
        raise usage(str(error) + (" (--name)" if spec.get("name") is None else "")) from error


def pair(text: str, flag: str) -> tuple[str, str]:
    """Return key and value of `key=value`."""
    key, separator, value = text.partition("=")
    if not key or not separator:
        raise usage(f"{flag} '{text}' is not a pair: write {flag} KEY=VALUE")
    return key, value


def read_request(path: str, flag: str) -> bytes:
    """Return the bytes of an inference request file, `-` for stdin, once they are known to be a JSON object."""
    import sys

    if path == "-" and sys.stdin is None:
        raise CommandError("input_closed", f"{flag} - reads stdin, which is closed: give it a request, or name a file")
    try:
        data = sys.stdin.buffer.read() if path == "-" else user_path(path).read_bytes()
    except OSError as error:
        raise usage(f"cannot read {flag} '{path}' ({error.strerror})") from error
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise usage(f"{flag} '{path}' is not JSON ({error}): see docs/calling.md for a request") from error
    if not isinstance(document, dict) or "inputs" not in document:
        raise usage(f"{flag} '{path}' is no inference request: it needs a list \"inputs\"")
    return data


def is_url(text: str) -> bool:
    return "://" in text


def _value(text: str) -> Any:
    """Return JSON where the text is JSON (`4`, `true`), else the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
