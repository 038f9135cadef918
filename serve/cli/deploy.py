"""`serve deploy`: a model file becomes an endpoint."""

import json
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from serve.cli.failure import usage
from serve.cli.options import HomePath, Json, Url, duration_s
from serve.cli.output import emit, emit_json, note

if TYPE_CHECKING:
    from serve.cli.bundle import Bundle

_SCALING, _LIMITS, _MODEL = "Scaling", "Limits", "Engine"


def deploy(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Model file, folder with one *.onnx, or URL.")
    ] = None,
    file: Annotated[str | None, typer.Option("--file", "-f", help="serve.yaml with settings; flags win.")] = None,
    name: Annotated[str | None, typer.Option(help="Name in the URL. Default: the file's stem or folder.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Label for the bill; repeatable.")
    ] = None,
    sample: Annotated[str | None, typer.Option(help="Request (JSON) to verify the model with.")] = None,
    min: Annotated[int | None, typer.Option(help="Replicas kept without traffic.", rich_help_panel=_SCALING)] = None,
    max: Annotated[int | None, typer.Option(help="Most replicas.", rich_help_panel=_SCALING)] = None,
    idle: Annotated[str | None, typer.Option(help="Idle time until zero, as 60s.", rich_help_panel=_SCALING)] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="Most requests inside one replica.", rich_help_panel=_SCALING)
    ] = None,
    target: Annotated[
        float | None, typer.Option(help="Share of concurrency to aim at.", rich_help_panel=_SCALING)
    ] = None,
    stable_window: Annotated[
        str | None, typer.Option(help="Averaging window of scaling.", rich_help_panel=_SCALING)
    ] = None,
    panic_window: Annotated[
        str | None, typer.Option(help="Window that detects bursts.", rich_help_panel=_SCALING)
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(help="Longest time of a request, waiting included.", rich_help_panel=_LIMITS)
    ] = None,
    execution_timeout: Annotated[
        str | None, typer.Option(help="Longest time inside a replica.", rich_help_panel=_LIMITS)
    ] = None,
    start_timeout: Annotated[
        str | None, typer.Option(help="Longest time to become ready.", rich_help_panel=_LIMITS)
    ] = None,
    queue: Annotated[int | None, typer.Option(help="Most requests that may wait.", rich_help_panel=_LIMITS)] = None,
    queue_bytes: Annotated[
        str | None, typer.Option(help="Most bytes that may wait, as 256MiB.", rich_help_panel=_LIMITS)
    ] = None,
    engine: Annotated[str | None, typer.Option(help="Engine that runs the model.", rich_help_panel=_MODEL)] = None,
    engine_setting: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Setting of the engine; repeatable.", rich_help_panel=_MODEL),
    ] = None,
    max_batch: Annotated[int | None, typer.Option(help="Most rows in one run.", rich_help_panel=_MODEL)] = None,
    threads: Annotated[int | None, typer.Option(help="Inference threads.", rich_help_panel=_MODEL)] = None,
    wait: Annotated[str, typer.Option(help="Longest time for the whole deploy.")] = "10m",
    url: Url = None,
    home: HomePath = None,
    as_json: Json = False,
) -> None:
    """Make a model an endpoint, and print what was measured.

    Starts the local platform where none runs and no address is given. Done only after one real inference. Example:
    serve deploy examples/digits/model.onnx --idle 30s --label team=vision
    """
    from serve.cli.specfile import merge, read_document, read_request

    flags = {
        "name": name, "min": min, "max": max, "idle": idle, "concurrency": concurrency, "target": target,
        "stable_window": stable_window, "panic_window": panic_window, "timeout": timeout,
        "execution_timeout": execution_timeout, "start_timeout": start_timeout, "queue": queue,
        "queue_bytes": queue_bytes, "engine": engine, "max_batch": max_batch, "threads": threads,
    }  # fmt: skip
    document = read_document(file)
    spec = merge(document, flags, label or [], engine_setting or [])
    chosen = model or document.get("model")
    if not isinstance(chosen, str) or not chosen:
        raise usage("name a model: `serve deploy model.onnx`, or `model:` in the file given with -f")
    request = None if sample is None else json.loads(read_request(sample, "--sample"))
    wait_s = duration_s(wait, "--wait")
    call = _prepare(chosen, spec)
    call.document["sample"] = request
    event = _run(call, wait_s, url, home)
    receipt, unchanged = event["receipt"], bool(event.get("unchanged"))
    if unchanged:
        note("same model and settings as the current revision: nothing to do")
    if receipt.get("warning"):
        note(f"warning: {receipt['warning']}")
    if as_json:
        emit_json(receipt | {"unchanged": unchanged})
    else:
        from serve.cli.receipt import receipt_text

        emit(receipt_text(receipt, unchanged=unchanged))


class _Call(NamedTuple):
    document: dict[str, Any]
    bundle: "Bundle | None"


def _prepare(model: str, spec: dict[str, Any]) -> _Call:
    """Return the deploy call: all that can be refused without the platform is refused here."""
    from serve.cli.bundle import Bundle, find_model
    from serve.cli.specfile import check, choose_name, is_url

    if is_url(model):
        spec = spec | {"name": choose_name(spec, model)}
        check(spec)
        return _Call({"spec": spec, "model": {"url": model}}, None)
    path = find_model(model)
    spec = spec | {"name": choose_name(spec, str(path))}
    check(spec)
    return _Call({"spec": spec}, Bundle(path))


def _run(call: _Call, wait_s: float, url: str | None, home: str | None) -> dict[str, Any]:
    from serve.cli.client import deadline
    from serve.cli.connect import connect_or_start
    from serve.cli.progress import Progress
    from serve.cli.publish import publish

    late = f"not deployed after {wait_s:g} s: allow more with --wait; what runs is as it was (`serve ls`)"
    with deadline(wait_s, late), Progress() as progress:
        api = connect_or_start(url, home, wait_s).api
        return publish(api, call.document, call.bundle, wait_s, progress)
