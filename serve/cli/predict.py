"""`serve predict`: one call of an endpoint, and its answer in readable form."""

import json
import sys
from typing import Annotated, Any

import typer

from serve.cli.failure import CommandError
from serve.cli.options import HomePath, Json, Name, Url, duration_s
from serve.cli.output import emit, milliseconds, note

_MOST_VALUES = 16


def predict(
    name: Name,
    input: Annotated[str, typer.Option("--input", "-i", metavar="FILE|-", help="Inference request (JSON).")],
    revision: Annotated[int | None, typer.Option(min=1, help="Retained revision to ask.")] = None,
    timeout: Annotated[str, typer.Option(help="Longest time to wait for the answer.")] = "10m",
    url: Url = None,
    home: HomePath = None,
    as_json: Json = False,
) -> None:
    """Call a deployment and print what it answers.

    The input is an Open Inference Protocol request. --json prints the answer as it came. Cold start and cost are told
    on stderr.
    """
    from serve.cli.client import deadline, segment
    from serve.cli.connect import connect
    from serve.cli.specfile import read_request

    timeout_s = duration_s(timeout, "--timeout")
    body = read_request(input, "--input")
    version = "" if revision is None else f"/versions/{revision}"
    client = connect(url, home).data
    with deadline(timeout_s, f"no answer after {timeout_s:g} s: allow more with --timeout, see `serve status {name}`"):
        answer = client.post(f"/v2/models/{segment(name)}{version}/infer", body)
    if as_json:
        sys.stdout.buffer.write(answer.body.rstrip(b"\n") + b"\n")
        sys.stdout.flush()
    else:
        _show(answer.body)
    note(_summary(answer.headers))


def _show(body: bytes) -> None:
    try:
        outputs = json.loads(body)["outputs"]
        rows = [(str(item["name"]), f"{item['datatype']} {item['shape']}", _values(item["data"])) for item in outputs]
    except (ValueError, KeyError, TypeError) as error:
        raise CommandError(
            "unexpected_answer", "the answer has outputs that are not JSON: ask for them with --json"
        ) from error
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    for label, kind, values in rows:
        emit(f"{label:<{widths[0]}}  {kind:<{widths[1]}}  {values}")


def _values(data: Any) -> str:
    flat = list(_flatten(data))
    shown = " ".join(_value(value) for value in flat[:_MOST_VALUES])
    return shown if len(flat) <= _MOST_VALUES else f"{shown} … ({len(flat)} values)"


def _flatten(data: Any) -> Any:
    if isinstance(data, list):
        for item in data:
            yield from _flatten(item)
    else:
        yield data


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _summary(headers: dict[str, str]) -> str:
    """Return one line about the call, from the headers that the platform sent."""
    start = "cold start" if headers.get("x-serve-cold-start") == "1" else "warm"
    phases = _phases(headers.get("server-timing", ""))
    if phases:
        each = ", ".join(f"{phase} {milliseconds(ms)}" for phase, ms in phases)
        start += f" {milliseconds(sum(ms for _, ms in phases))} ({each})"
    facts = [start]
    if "x-serve-cost" in headers:
        facts.append(f"cost {headers['x-serve-cost']}")
    if "x-serve-revision" in headers:
        facts.append(f"revision {headers['x-serve-revision']}")
    if "x-serve-request-id" in headers:
        facts.append(f"request {headers['x-serve-request-id']}")
    return " · ".join(facts)


def _phases(server_timing: str) -> list[tuple[str, float]]:
    """Return (phase, ms) of a `server-timing` header; entries without a duration are left out."""
    phases = []
    for entry in server_timing.split(","):
        phase, *parameters = (part.strip() for part in entry.split(";"))
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key == "dur":
                try:
                    phases.append((phase, float(value)))
                except ValueError:
                    continue
    return phases
