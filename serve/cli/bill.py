"""`serve bill`: what it cost, and the proof that the bill is complete."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from serve.cli.failure import CommandError, usage
from serve.cli.options import HomePath, Json, Url, duration_s
from serve.cli.output import emit, emit_json, emit_table, from_nano, note

app = typer.Typer(no_args_is_help=False)
_GROUPS = re.compile(r"deployment|revision|hour|day|label:.+")
_PARTS = ("cold", "billed", "lost", "idle", "drain", "request")


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
    fields = {"by": by, "since": _instant(since, "--since", now), "until": _instant(until, "--until", now)}
    api = connect(url, home).api
    if csv:
        emit(api.get_text("/api/v1/bill.csv", **fields).rstrip("\n"))
        return
    report = api.get("/api/v1/bill", **fields)
    if as_json:
        emit_json(report)
    else:
        _show(report)


@app.command()
def verify(url: Url = None, home: HomePath = None, as_json: Json = False) -> None:
    """Prove that the ledger says what the journal says, and that every life adds up.

    Exits 1 where a problem was found. Notes are what a killed process leaves behind truthfully.
    """
    from serve.cli.connect import connect

    result = connect(url, home).api.get("/api/v1/bill/verify")
    if as_json:
        emit_json(result)
    else:
        for word, key in (("note", "notes"), ("problem", "problems")):
            for sentence in result.get(key) or ():
                emit(f"{word}: {sentence}")
        verdict = "adds up" if result["ok"] else f"does not add up: {len(result['problems'])} problems"
        emit(f"the ledger {verdict} ({result['lives']} replica lives, {result['requests']} requests)")
    if not result["ok"]:
        raise typer.Exit(1)


def _instant(text: str | None, flag: str, now: datetime) -> str | None:
    """Return a point in time as ISO 8601 in UTC: a duration counts back from `now`, a date is local midnight."""
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        try:
            at = now - timedelta(seconds=duration_s(text, flag))
        except (CommandError, OverflowError) as error:
            raise usage(
                f"{flag} '{text}' is neither a duration nor a date: write 2h, 1d or 2026-11-01T08:00"
            ) from error
    return at.isoformat().replace("+00:00", "Z")


def _show(report: dict[str, Any]) -> None:
    rows = report["rows"]
    if not rows:
        note("nothing was used in this time")
        return
    currency = str(report["currency"])
    headers = (str(report["by"]).upper(), "REQUESTS", "COLD STARTS", *(part.upper() for part in _PARTS), currency)
    table = [_cells(row, str(row.get("group") or "-")) for row in rows]
    emit_table(headers, [*table, _cells(report["total"], "total")], right=range(1, len(headers)))


def _cells(row: dict[str, Any], label: str) -> tuple[str, ...]:
    parts = (from_nano(int(row.get(f"{part}_cost_nano", 0))) for part in _PARTS)
    return (label, str(row["requests"]), str(row.get("cold_starts", 0)), *parts, from_nano(int(row["cost_nano"])))
