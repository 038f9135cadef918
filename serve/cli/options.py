"""Options and arguments that several commands share, and the sentence of each."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from serve.cli.failure import CommandError, usage


def complete_deployment(incomplete: str) -> list[str]:
    """Return the names of deployments that begin with `incomplete`; nothing where no platform answers at once."""
    from serve.cli.client import deadline
    from serve.cli.connect import connect
    from serve.cli.failure import CommandError

    try:
        with deadline(1.0, "too slow"):
            listing = connect(None, None).api.get("/api/v1/deployments")
        names = [str(item["name"]) for item in listing["deployments"]]
    except (CommandError, OSError, KeyError, TypeError):
        return []
    return [name for name in names if name.startswith(incomplete)]


Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="Name of the deployment.", autocompletion=complete_deployment),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, errors too.")]
Url = Annotated[
    str | None,
    typer.Option("--url", envvar="SERVE_URL", help="Address of the platform. Default: the one in the home."),
]
HomePath = Annotated[
    str | None,
    typer.Option("--home", envvar="SERVE_HOME", help="Folder of the local platform. Default: ~/.servezero."),
]


def duration_s(text: str, flag: str) -> float:
    """Return the seconds in `60`, `60s`, `2h`, `1d`. Raises CommandError that names `flag`."""
    from serve.core.durations import parse_duration

    value = parse_duration(text)
    if value is None or value < 0:
        raise usage(f"{flag} '{text}' is not a duration: write 60s, 5m, 2h or 1d")
    return value


def instant(text: str | None, flag: str, now: datetime) -> str | None:
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
