"""`serve logs` and `serve explain`: what replicas said, why the autoscaler did what it did, and what if."""

import json
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from serve.cli import what_if as what_if_table
from serve.cli.failure import usage
from serve.cli.options import HomePath, Json, Name, Url, instant
from serve.cli.output import emit, emit_json, emit_table, moment, note

_SINCE = "7d"
_TOLD_ALREADY = frozenset({"time", "replica", "logger"})


def logs(
    name: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as new lines come.")] = False,
    request_id: Annotated[str | None, typer.Option(help="Only lines of this request.")] = None,
    tail: Annotated[int, typer.Option(min=0, help="Begin with this many of the last lines.")] = 100,
    url: Url = None,
    home: HomePath = None,
    as_json: Json = False,
) -> None:
    """Print what the replicas of a deployment wrote. With --json: one JSON object a line."""
    from serve.cli.client import segment
    from serve.cli.connect import connect

    lines = connect(url, home).api.get_lines(
        f"/api/v1/deployments/{segment(name)}/logs", follow=1 if follow else None, request_id=request_id, tail=tail
    )
    count = 0
    for count, line in enumerate(lines, start=1):  # noqa: B007
        if as_json:
            emit(json.dumps(line, ensure_ascii=False))
        else:
            emit(_readable(line))
    if count == 0:
        note("no lines" + (f" of request {request_id}" if request_id else "") + f" from '{name}'")


def explain(
    name: Name,
    what_if: Annotated[
        str | None,
        typer.Option(metavar="CHANGES", help="Simulate what was recorded under other settings, as idle=10s,max=4."),
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="With --what-if: from, as 1d, 2h, or 2026-11-01. Default: 7d.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="With --what-if: to, in the same words. Default: now.")] = None,
    url: Url = None,
    home: HomePath = None,
    as_json: Json = False,
) -> None:
    """Say why replicas of a deployment started and stopped; or, with --what-if, what other settings would cost."""
    from serve.cli.client import segment
    from serve.cli.connect import connect

    path = f"/api/v1/deployments/{segment(name)}"
    if what_if is not None:
        now = datetime.now(UTC)
        span = {"since": instant(since or _SINCE, "--since", now), "until": instant(until, "--until", now)}
        answer = connect(url, home).api.get(path + "/what-if", changes=what_if, **span)
        emit_json(answer) if as_json else what_if_table.show(answer)
        return
    if since is not None or until is not None:
        raise usage("--since and --until belong to --what-if: add it, as --what-if idle=10s")
    document = connect(url, home).api.get(path + "/explain")
    if as_json:
        emit_json(document)
        return
    decisions = document["decisions"]
    if not decisions:
        note(f"nothing was decided for '{name}' yet: no request came since the platform started")
        return
    emit_table(
        ("TIME", "REVISION", "REPLICAS", "REASON"),
        (
            (
                moment(item["time"]),
                str(item.get("revision", "-")),
                f"{item['from']} → {item['to']}",
                str(item["reason"]),
            )
            for item in decisions
        ),
        right=(1,),
    )


def _readable(line: dict[str, Any]) -> str:
    """Return a line as `time replica text`; of JSON log lines level and message, further fields, and the exception."""
    start = f"{moment(line['time'])} " if line.get("time") else ""
    start += str(line.get("replica", "-"))
    text = str(line.get("line", ""))
    try:
        entry = json.loads(text) if text.startswith("{") else None
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict) or "message" not in entry:
        return f"{start} {text}"
    level, message, exception = entry.pop("level", "-"), entry.pop("message"), entry.pop("exception", None)
    fields = "".join(f" {key}={value}" for key, value in entry.items() if key not in _TOLD_ALREADY)
    return f"{start} {level} {message}{fields}" + (f"\n{str(exception).rstrip()}" if exception else "")
