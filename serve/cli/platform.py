"""`serve up` and `serve down`: the platform on this machine."""

import os
from dataclasses import asdict
from typing import Annotated

import typer

from serve.cli.failure import usage
from serve.cli.options import HomePath, Json, duration_s
from serve.cli.output import emit, emit_json, note


def up(
    context: typer.Context,
    host: Annotated[
        str | None, typer.Option("--host", envvar="SERVE_HOST", help="Address to listen on. Default: 127.0.0.1.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option("--port", envvar="SERVE_PORT", min=0, max=65535, help="Port; 0 takes a free one. Default: 8000."),
    ] = None,
    admin_port: Annotated[
        int | None,
        typer.Option(
            "--admin-port", envvar="SERVE_ADMIN_PORT", min=0, max=65535, help="Port for /api/v1 and /metrics alone."
        ),
    ] = None,
    home: HomePath = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Run in the background; return once it answers.")
    ] = False,
    wait: Annotated[str, typer.Option("--wait", help="With --detach: longest time until it answers.")] = "60s",
    as_json: Json = False,
) -> None:
    """Start the platform on this machine.

    Without --detach it runs in the foreground until SIGTERM or Ctrl-C. Where one runs already, says so and exits 0.
    """
    from serve.cli.local import (
        check_port_free,
        command_line,
        configured_address,
        require_linux,
        running,
        start_detached,
    )
    from serve.core.home import Home

    require_linux()
    folder = Home(home)
    if as_json and not detach:
        raise usage("--json needs --detach: in the foreground, stdout and stderr belong to the platform")
    wait_s = duration_s(wait, "--wait")
    info = running(folder)
    if info is None and admin_port is not None:
        # The platform reads its settings from the environment; only home, host and port have flags there.
        os.environ["SERVE_ADMIN_PORT"] = str(admin_port)
    if info is None and not detach:
        known_host, known_port = configured_address()
        host, port = host or known_host, known_port if port is None else port
        check_port_free(host, port)
        arguments = command_line(folder, host, port)
        os.execv(arguments[0], arguments)  # noqa: S606
    if info is not None:
        note(f"the platform runs already at {info.url} (pid {info.pid})")
        given = [f"--{key.replace('_', '-')}" for key in ("host", "port", "admin_port") if _is_given(context, key)]
        if given:
            note(f"{' and '.join(given)} did not change it: end it with `serve down` first")
    else:
        info = start_detached(folder, wait_s, host=host, port=port)
    if as_json:
        emit_json(asdict(info))
    else:
        emit(info.url)


def _is_given(context: typer.Context, parameter: str) -> bool:
    """Return whether the flag stands on the command line, and is not the environment's."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def down(
    home: HomePath = None,
    wait: Annotated[str, typer.Option("--wait", help="Longest time for requests inside to finish.")] = "60s",
    as_json: Json = False,
) -> None:
    """Stop the platform on this machine.

    It answers what it has accepted, then ends with all its replicas. Where none runs, says so and exits 0.
    """
    from serve.cli.local import stop
    from serve.core.home import Home

    folder = Home(home)
    info = stop(folder, duration_s(wait, "--wait"))
    if info is None:
        note(f"no platform runs in {folder.path}")
    else:
        note(f"stopped the platform that ran at {info.url} (pid {info.pid})")
    if as_json:
        emit_json({"stopped": info is not None, "pid": info.pid if info else None})
