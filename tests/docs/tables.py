"""The parts of `docs/` that say what the code says: `python -m tests.docs.tables` writes them, a test compares them.

Everything outside the two marks of a page is written by people.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer.main
from pydantic import ByteSize
from pydantic.fields import FieldInfo

from serve.cli.failure import OWN_CODES, Refused
from serve.cli.main import app
from serve.core.errors import ServeError
from serve.core.metrics import Metrics
from serve.core.settings import PlatformSettings
from serve.core.spec import DeploymentSpec, json_schema

DOCS = Path(__file__).parents[2] / "docs"
BEGIN = "<!-- from the code: python -m tests.docs.tables -->"
END = "<!-- end -->"


def commands() -> Iterator[tuple[str, Any]]:
    """Yield each command's words and its click command, in the order of the help."""

    def walk(words: str, command: Any) -> Iterator[tuple[str, Any]]:
        below = getattr(command, "commands", None)
        if below is None or words != "serve":
            yield words, command
        for name, child in (below or {}).items():
            yield from walk(f"{words} {name}", child)

    yield from walk("serve", typer.main.get_command(app))


def cli() -> str:
    sections = []
    for words, command in commands():
        arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
        usage = " ".join([words, *(parameter.metavar for parameter in arguments)])
        rows = [f"| `{_flag(parameter)}` | {_cell(parameter.help)} |" for parameter in command.params]
        text = " ".join(str(command.help).split())
        sections.append("\n".join([f"## {usage}", "", text, "", "| | |", "|---|---|", *rows]))
    return "\n\n".join(sections)


def settings() -> str:
    rows = [
        f"| `SERVE_{name.upper()}` | {_default(field)} | {_cell(field.description)} |"
        for name, field in PlatformSettings.model_fields.items()
    ]
    return "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows])


def spec() -> str:
    rows = [
        f"| `{name}` | `{_spec_flag(name)}` | {_default(field)} | {_cell(field.description)} |"
        for name, field in DeploymentSpec.model_fields.items()
    ]
    model = "| `model` | the argument | required | Path or URL of the model; a relative path counts from the file. |"
    return "\n".join(["| key | flag | default | meaning |", "|---|---|---|---|", model, *rows])


def errors() -> str:
    def tree(error: type[ServeError]) -> Iterator[type[ServeError]]:
        yield error
        for below in error.__subclasses__():
            yield from tree(below)

    own = [f"| `{code}` | – | {int(exit_code)} |" for code, exit_code in OWN_CODES.items()]
    known = {error.code: error.status for error in tree(ServeError) if error.__module__ == ServeError.__module__}
    rows = [f"| `{code}` | {status} | {exit_code(code, status)} |" for code, status in known.items()]
    return "\n".join(["| code | HTTP status | exit code of the command |", "|---|---|---|", *rows, *own])


def metrics() -> str:
    rows = [
        f"| `{metric.name}` | {metric.kind} | {', '.join(f'`{label}`' for label in metric.labels) or '–'} "
        f"| {_cell(metric.text)} |"
        for metric in Metrics().declared()
    ]
    return "\n".join(["| metric | kind | labels | meaning |", "|---|---|---|---|", *sorted(rows)])


PAGES: dict[str, Callable[[], str]] = {
    "cli.md": cli,
    "settings.md": settings,
    "serve-yaml.md": spec,
    "errors.md": errors,
    "metrics.md": metrics,
}
SCHEMA = DOCS / "serve.schema.json"


def schema_text() -> str:
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def generated_part(page: str) -> str:
    """Return what stands between the marks of a page. Raises ValueError where they are missing."""
    return page[page.index(BEGIN) + len(BEGIN) : page.index(END)].strip()


def _flag(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.metavar)
    value = "" if parameter.is_flag else " " + (parameter.metavar or "VALUE")
    return _cell(", ".join(sorted(parameter.opts, key=len)) + value)


def _cell(text: str | None) -> str:
    assert text, "everything that a person can set has a sentence"
    return " ".join(text.split()).replace("|", "\\|")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "from the model's path"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "unset"
    if value in ({}, []):
        return "none"
    return f"`{value.human_readable()}`" if isinstance(value, ByteSize) else f"`{value}`"


def _spec_flag(name: str) -> str:
    flags = {"labels": "--label KEY=VALUE", "engine_settings": "--engine-setting KEY=VALUE"}
    return flags.get(name, "--" + name.replace("_", "-"))


def exit_code(code: str, status: int) -> int:
    return int(Refused(status, {"error": "", "code": code}).exit_code)


def main() -> None:
    for page, generate in PAGES.items():
        path = DOCS / page
        text = path.read_text()
        before, after = text[: text.index(BEGIN)], text[text.index(END) :]
        path.write_text(f"{before}{BEGIN}\n{generate()}\n{after}")
    SCHEMA.write_text(schema_text())


if __name__ == "__main__":
    main()
