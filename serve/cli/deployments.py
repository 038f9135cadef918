"""`serve ls`, `status`, `history`, `rollback`, `delete`: what is deployed, and which revision of it."""

import sys
from typing import Annotated, Any

import typer

from serve.cli.failure import CommandError, deploy_failed, usage
from serve.cli.options import HomePath, Json, Name, Url, duration_s
from serve.cli.output import emit, emit_json, emit_table, milliseconds, moment, note, seconds, size


def ls(url: Url = None, home: HomePath = None, as_json: Json = False) -> None:
    """List the deployments."""
    from serve.cli.connect import connect

    listing = connect(url, home).api.get("/api/v1/deployments")
    if as_json:
        emit_json(listing)
        return
    deployments = listing["deployments"]
    if not deployments:
        note("nothing is deployed: `serve deploy model.onnx`")
        return
    emit_table(
        ("NAME", "STATE", "REVISION", "REPLICAS", "IDLE", "CREATED", "LABELS"),
        (
            (
                str(item["name"]),
                str(item["state"]),
                str(item["revision"]),
                str(item["replicas"]),
                seconds(item.get("idle_s")),
                moment(item.get("created_at")),
                ",".join(f"{key}={value}" for key, value in (item.get("labels") or {}).items()) or "-",
            )
            for item in deployments
        ),
        right=(2, 3),
    )


def status(name: Name, url: Url = None, home: HomePath = None, as_json: Json = False) -> None:
    """Show a deployment: state, traffic, replicas, queue, how long starts take."""
    from serve.cli.connect import connect

    document = connect(url, home).api.get(_path(name))
    if as_json:
        emit_json(document)
    else:
        _show_status(document)


def history(name: Name, url: Url = None, home: HomePath = None, as_json: Json = False) -> None:
    """List the retained revisions of a deployment, newest first, and what each changed."""
    from serve.cli.connect import connect

    document = connect(url, home).api.get(_path(name, "/history"))
    if as_json:
        emit_json(document)
        return
    emit_table(
        ("REVISION", "CURRENT", "STATE", "CREATED", "SIZE", "MODEL", "CHANGES"),
        (
            (
                str(item["revision"]),
                "*" if item.get("current") else "",
                str(item.get("state", "-")),
                moment(item.get("created_at")),
                size(item.get("size_bytes")),
                str(item.get("digest", ""))[:12],
                "; ".join(str(change) for change in item.get("changes") or ()) or "-",
            )
            for item in document["revisions"]
        ),
        right=(0,),
    )


def rollback(
    name: Name,
    revision: Annotated[
        int | None, typer.Argument(metavar="[REVISION]", help="Retained revision. Default: the one before.")
    ] = None,
    wait: Annotated[str, typer.Option(help="Longest time for the rollback.")] = "10m",
    url: Url = None,
    home: HomePath = None,
    as_json: Json = False,
) -> None:
    """Give the traffic back to an earlier revision, with its settings."""
    from serve.cli.client import deadline
    from serve.cli.connect import connect

    wait_s = duration_s(wait, "--wait")
    api = connect(url, home).api
    result: dict[str, Any] = {}
    with deadline(wait_s, f"not rolled back after {wait_s:g} s: see `serve history {name}`"):
        for line in api.post_lines(_path(name, "/rollback"), {"revision": revision}):
            if line.get("event") == "failed":
                raise deploy_failed(line)
            if line.get("event") == "progress":
                note(str(line.get("message", "")))
                continue
            result = line.get("receipt") or line
    if "revision" not in result:
        raise CommandError("unexpected_answer", f"the answer does not say what happened: see `serve history {name}`")
    if as_json:
        emit_json(result)
    else:
        emit(f"{name}: revision {result['revision']} takes the traffic")


def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Url = None,
    home: HomePath = None,
    as_json: Json = False,
) -> None:
    """Delete a deployment with all its revisions. What it cost stays on the bill."""
    from serve.cli.connect import connect

    api = connect(url, home).api
    if not yes:
        if as_json or not all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr)):
            raise usage(f"nobody here to ask whether to delete '{name}': give --yes")
        if not typer.confirm(f"Delete '{name}' and all its revisions?", err=True):
            note("nothing deleted")
            return
    document = api.delete(_path(name))
    if as_json:
        emit_json(document)
    else:
        note(f"deleted {document['name']}")


def _path(name: str, below: str = "") -> str:
    from serve.cli.client import segment

    return f"/api/v1/deployments/{segment(name)}{below}"


def _show_status(document: dict[str, Any]) -> None:
    queue = document.get("queue") or {}
    traffic = ", ".join(f"revision {share['revision']} ({share['weight']})" for share in document.get("traffic") or ())
    lines = [
        ("name", str(document["name"])),
        ("state", str(document["state"])),
        ("traffic", traffic or "-"),
        ("queue", f"{queue.get('count', 0)} requests, {size(queue.get('bytes', 0))}"),
        *_cold_starts(document.get("cold_start_ms") or {}),
        *([("failure", str(document["failure"]))] if document.get("failure") else []),
    ]
    for label, value in lines:
        emit(f"{label:<12} {value}")
    replicas = document.get("replicas") or ()
    if replicas:
        emit("")
        emit_table(
            ("REPLICA", "PID", "REVISION", "STATE", "IN FLIGHT", "MEMORY"),
            (
                (
                    str(replica["id"]),
                    str(replica["pid"]),
                    str(replica["revision"]),
                    str(replica["state"]),
                    str(replica["in_flight"]),
                    size(replica["memory_bytes"]),
                )
                for replica in replicas
            ),
            right=(1, 2, 4, 5),
        )


def _cold_starts(cold_start_ms: dict[str, Any]) -> list[tuple[str, str]]:
    if cold_start_ms.get("p50") is None:
        return [("start", "none yet")]
    quantiles = f"{milliseconds(cold_start_ms['p50'])} (p50), {milliseconds(cold_start_ms.get('p95'))} (p95)"
    rows = [("start", f"{quantiles} until ready")]
    phases = cold_start_ms.get("phases") or {}
    return rows + [(f"  {phase}", milliseconds(_median(ms))) for phase, ms in phases.items()]


def _median(phase: Any) -> float | None:
    """Return a phase's milliseconds, given plainly or as quantiles."""
    return phase.get("p50") if isinstance(phase, dict) else phase
