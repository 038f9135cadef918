"""The `serve` command: its groups, and how a failure leaves it.

Everything heavy is imported inside the commands: `serve --help` must cost what a bare typer program costs. For the same
reason modules with commands do without `from __future__ import annotations`: typer would evaluate each annotation anew,
three times, at every start.
"""

import io
import os
import sys
from typing import Annotated

import typer

from serve.cli import bill, deploy, deployments, observe, platform, predict
from serve.cli.failure import CommandError, ExitCode
from serve.cli.output import emit, emit_json, note

_CALL, _WATCH, _MONEY, _MACHINE = "Deploy and call", "Watch", "Money", "This machine"

app = typer.Typer(
    name="serve",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 error, 2 usage, 3 not found, 4 unreachable, 5 deploy failed, 6 timeout.",
)
app.command(rich_help_panel=_CALL)(deploy.deploy)
app.command(rich_help_panel=_CALL)(predict.predict)
app.command(rich_help_panel=_CALL)(deployments.rollback)
app.command(rich_help_panel=_CALL)(deployments.delete)
app.command(rich_help_panel=_WATCH)(deployments.ls)
app.command(rich_help_panel=_WATCH)(deployments.status)
app.command(rich_help_panel=_WATCH)(deployments.history)
app.command(rich_help_panel=_WATCH)(observe.logs)
app.command(rich_help_panel=_WATCH)(observe.explain)
app.add_typer(bill.app, name="bill", rich_help_panel=_MONEY)
app.command(rich_help_panel=_MACHINE)(platform.up)
app.command(rich_help_panel=_MACHINE)(platform.down)


def _print_version(wanted: bool) -> None:
    if wanted:
        from serve.core.version import version

        emit(version())
        raise typer.Exit


@app.callback()
def serve(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Deploy models that cost nothing at rest, call them, and see what each request cost."""


def main() -> int:
    """Run the command line; return its exit code."""
    if sys.stdout is None:  # before anything is done: its result could not be told
        note("error: stdout is closed: let it lead somewhere, as in `serve ls > /dev/null`")
        return ExitCode.ERROR
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal has every character
    try:
        return _run(_wants_json(sys.argv[1:]))
    except BrokenPipeError:  # a reader that has seen enough, such as `head`
        _discard_stdout()
        return ExitCode.ERROR
    except OSError as error:  # such as a full disk behind `serve bill --csv > bill.csv`
        note(f"error: the system refused it ({error}): free space, or check permissions, then try again")
        _discard_stdout()
        return ExitCode.ERROR


def _run(as_json: bool) -> int:
    try:
        # With --json, typer hands usage errors to us, so that they are JSON too.
        return app(prog_name="serve", standalone_mode=not as_json) or 0
    except CommandError as error:
        _report(error, as_json)
        return error.exit_code
    except typer.TyperException as error:
        _report(CommandError("usage", error.format_message()), as_json)
        return ExitCode.USAGE
    except typer.Abort:
        note("aborted")
        return ExitCode.ERROR
    except OSError:
        raise
    except Exception as error:
        # Commands read answers as the platform gives them: whatever else answered is told apart from it here.
        if os.environ.get("SERVE_TRACEBACK"):
            raise
        _report(CommandError("unexpected_answer", _surprise(error)), as_json)
        return ExitCode.ERROR


def _surprise(error: Exception) -> str:
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return (
        f"the command cannot go on ({what:.200}): either what answered is no ServeZero platform of this version, "
        "or this is a defect; SERVE_TRACEBACK=1 shows where"
    )


def _discard_stdout() -> None:
    """What still waits to be written must not fail once more when the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _wants_json(arguments: list[str]) -> bool:
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options


def _report(error: CommandError, as_json: bool) -> None:
    if as_json:
        emit_json(error.body())
    else:
        note(f"error: {error}")
