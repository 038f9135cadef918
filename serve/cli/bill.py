"""`serve bill`: what it cost, and the proof that the bill is complete."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from serve.cli.failure import usage
from serve.cli.options import HomePath, Json, Url, instant
from serve.cli.output import emit, emit_json, emit_table, from_nano, moment, note

app = typer.Typer(no_args_is_help=False)
_GROUPS = re.compile(r"deployment|revision|hour|day|label:.+")
_COUNTS = {"requests": "REQUESTS", "cold_starts": "COLD STARTS", "probes": "PROBES"}
_PARTS = {"cold": "COLD", "billed": "ANSWERED", "lost": "LOST", "idle": "IDLE", "drain": "DRAIN", "request": "FEE"}
"""Keys of the report, and the heads of their columns. What docs/cli.md says under "Reading the bill"."""
_BOOKS_TIMEOUT_S = 3600.0
"""A proof reads the whole journal: about half a minute a million requests."""
_GIB_US = 1024 * 1_000_000


@app.callback(invoke_without_command=True)
def bill(
    context: typer.Context,
    by: Annotated[
        str, typer.Option(metavar="GROUP", help="deployment, revision, label:KEY, hour or day.")
    ] = "deployment",
    since: Annotated[str | None, typer.Option(help="From: as 1d, 2h, or 2026-11-01. Default: all.")] = None,
    until: Annotated[str | None, typer.Option(help="To, in the same words. Default: now.")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV; costs in billionths of the currency.")] = False,
    url: Url = None,
    home: HomePath = None,
    as_json: Json = False,
) -> None:
    """Print what it cost. Rows sum to the total exactly."""
    if context.invoked_subcommand is not None:
        return
    from serve.cli.connect import connect

    if not _GROUPS.fullmatch(by):
        raise usage(f"--by '{by}' is no way to group: use deployment, revision, label:KEY, hour or day")
    if csv and as_json:
        raise usage("--csv and --json exclude each other: choose one")
    now = datetime.now(UTC)
    fields = {"by": by, "since": instant(since, "--since", now), "until": instant(until, "--until", now)}
    api = connect(url, home).api.patient(_BOOKS_TIMEOUT_S)
    if csv:
        emit(api.get_text("/api/v1/bill.csv", **fields).rstrip("\n"))
        return
    report = api.get("/api/v1/bill", **fields)
    if as_json:
        emit_json(report)
    else:
        _show(report)
        _show_machine(report.get("machine"), report["currency"])


@app.command()
def verify(
    kernel: Annotated[
        bool, typer.Option("--kernel", help="Beside each replica's charge, what the kernel counted of it.")
    ] = False,
    url: Url = None,
    home: HomePath = None,
    as_json: Json = False,
) -> None:
    """Prove that the ledger says what the journal says, and that every life and the machine add up.

    Exits 1 where a problem was found. Notes are what a killed process leaves behind truthfully; what differs from the
    kernel's figures is no problem of the books.
    """
    from serve.cli.connect import connect

    api = connect(url, home).api.patient(_BOOKS_TIMEOUT_S)
    result = api.get("/api/v1/bill/verify", kernel="1" if kernel else None)
    if as_json:
        emit_json(result)
    else:
        for word, key in (("note", "notes"), ("problem", "problems")):
            for sentence in result.get(key) or ():
                emit(f"{word}: {sentence}")
        verdict = "adds up" if result["ok"] else f"does not add up: {_count(len(result['problems']), 'problem')}"
        # Publishing's own inferences are among them, so they are no requests.
        lives, inferences = _count(result["lives"], "replica life", "replica lives"), result["requests"]
        emit(f"the ledger {verdict} ({lives}, {_count(inferences, 'inference')})")
        _show_sums(result.get("machine"))
        if kernel:
            _show_kernel(result["kernel"])
    if not result["ok"]:
        raise typer.Exit(1)


def _show_kernel(kernel: dict[str, Any]) -> None:
    """Print each replica's charge beside what the kernel counted, then what cannot be right."""
    headers = ["REPLICA", "STATE", "GRANTED", "KERNEL", "RATIO", "CHARGED MIB", "OWN MIB", "PEAK RSS MIB"]

    def shown(value: Any) -> str:
        return "-" if value is None else str(value)

    def seconds(us: int | None) -> str:
        return "-" if us is None else f"{us / 1e6:.3f}"

    rows = [
        [row["replica"], row["state"], seconds(row["granted_core_us"]), seconds(row["kernel_cpu_us"])]
        + [shown(row[key]) for key in ("ratio", "charged_mib", "kernel_own_mib", "kernel_peak_rss_mib")]
        for row in kernel["replicas"]
    ]
    if rows:
        emit("")
        emit_table(headers, rows, right=range(2, len(headers)))
    for row in kernel["replicas"]:
        for flag in row["flags"]:
            emit(f"look: {row['replica']}: {flag}")
    total = kernel["total"]
    used, granted = seconds(total["kernel_cpu_us"]), seconds(total["granted_core_us"])
    emit(
        f"granted {granted} core seconds while cold or busy, used {used}: "
        f"{_count(total['flagged'], 'replica')} to look at"
    )
    note("GRANTED is charged: cores × the time cold or busy. KERNEL is what ran.")
    note("OWN is the most that it surely held alone; PEAK RSS has pages in it that it shared with others.")
    note("A replica to look at used more than it is charged for. It breaks no law of the books.")


def _show_sums(machine: dict[str, Any] | None) -> None:
    """Print the machine's equation with the integers that were compared."""
    if machine is None:
        return
    for unit, key in (("core·µs", "core_us"), ("MiB·µs", "mib_us")):
        terms = " + ".join(f"{line['line']} {line[key]}" for line in machine["lines"] if line[key])
        if machine["tenures"]:
            emit(f"{terms} = {machine['total'][key]} {unit} of the machine")
    _note_outside(machine)


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _show(report: dict[str, Any]) -> None:
    rows = report["rows"]
    note(f"in {report['currency']}, {_period(report.get('since_ns'), report.get('until_ns'))}")
    if not rows:
        note("nothing was used in this time")
        return
    counts = [key for key in _COUNTS if key != "probes" or any(row.get(key) for row in rows)]
    parts = [part for part in _PARTS if any(row.get(f"{part}_cost_nano") for row in rows)]
    headers = [str(report["by"]).upper(), *(_COUNTS[key] for key in counts), *(_PARTS[part] for part in parts)]
    headers.append(f"TOTAL {report['currency']}")

    def cells(row: dict[str, Any], label: str) -> list[str]:
        money = [*(f"{part}_cost_nano" for part in parts), "cost_nano"]
        return [label, *(str(row.get(key, 0)) for key in counts), *(from_nano(int(row.get(key, 0))) for key in money)]

    table = [cells(row, str(row.get("group") or "-")) for row in rows]
    emit_table(headers, [*table, cells(report["total"], "total")], right=range(1, len(headers)))


def _show_machine(machine: dict[str, Any] | None, currency: str) -> None:
    """Print where everything that the machine had in this time went: it sums to the machine's resources × time."""
    if machine is None or not machine["tenures"]:
        return
    headers = ["MACHINE", "CORE SECONDS", "GIB SECONDS", currency]
    lines = [line for line in machine["lines"] if line["core_us"] or line["mib_us"]]
    emit("")
    emit_table(headers, [_line_cells(line) for line in (*lines, machine["total"])], right=range(1, len(headers)))
    elapsed_us = sum(tenure["elapsed_us"] for tenure in machine["tenures"])
    stretches = _count(len(machine["tenures"]), "stretch", "stretches")
    note(f"the platform had the machine for {elapsed_us / 1e6:.1f} s in {stretches}")
    if machine["gap_us"]:
        note(f"{machine['gap_us'] / 1e6:.1f} s between them are on no line: the machine was not the platform's")
    _note_outside(machine)


def _line_cells(line: dict[str, Any]) -> list[str]:
    gib_seconds = f"{line['mib_us'] / _GIB_US:.3f}"
    money = [from_nano(line["cost_nano"])] if "cost_nano" in line else []
    return [line["line"], f"{line['core_us'] / 1e6:.3f}", gib_seconds, *money]


def _note_outside(machine: dict[str, Any]) -> None:
    outside = machine["outside"]
    if outside["core_us"] or outside["mib_us"]:
        note("lives recorded before the machine's time was are on the bill, but on no line of the machine")


def _period(since_ns: int | None, until_ns: int | None) -> str:
    """Return which time the bill is for, in this machine's time zone."""
    begin, end = (
        None if ns is None else moment(datetime.fromtimestamp(ns / 1e9, UTC).isoformat()) for ns in (since_ns, until_ns)
    )
    return f"from {begin or 'the beginning'} until {end or 'now'}"
