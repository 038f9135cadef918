"""How a command fails: one exception, and the exit codes of `docs/cli.md`."""

from __future__ import annotations

from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """What a script can tell apart. Part of the interface: never renumber."""

    OK = 0
    ERROR = 1
    USAGE = 2
    NOT_FOUND = 3
    UNREACHABLE = 4
    DEPLOY_FAILED = 5
    TIMEOUT = 6


OWN_CODES = {
    "usage": ExitCode.USAGE,
    "unreachable": ExitCode.UNREACHABLE,
    "wait_timeout": ExitCode.TIMEOUT,
    "platform_failed": ExitCode.ERROR,
    "unexpected_answer": ExitCode.ERROR,
    "input_closed": ExitCode.ERROR,
}
"""Stable codes that only the command uses; all others come from the platform. Documented in `docs/errors.md`."""

_INVALID_SPEC = "invalid_spec"
"""A setting cannot be: the same for the caller whether we found it or the platform."""
_TIMEOUT_CODES = frozenset({"queue_timeout", "execution_timeout"})


class CommandError(Exception):
    """The command ends here. `str(error)` is the sentence a person reads; it names the remedy."""

    def __init__(self, code: str, sentence: str, *, exit_code: ExitCode | None = None, **details: Any) -> None:
        super().__init__(sentence)
        self.code = code
        self.exit_code = OWN_CODES.get(code, ExitCode.ERROR) if exit_code is None else exit_code
        self.details = details

    def body(self) -> dict[str, Any]:
        """Return what `--json` prints: the shape of the platform's own errors."""
        return {"error": str(self), "code": self.code} | self.details


class Refused(CommandError):
    """The platform answered, with an error. `status` is its HTTP status."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        code = str(body.get("code", "unexpected_answer"))
        details = {key: value for key, value in body.items() if key not in ("error", "code")}
        super().__init__(code, str(body.get("error", f"HTTP status {status}")), exit_code=_exit_code(status, code))
        self.status = status
        self.details = details


def deploy_failed(body: dict[str, Any]) -> CommandError:
    """Return the error of a deployment that the platform could not make, or did not try: settings that cannot be."""
    details = {key: value for key, value in body.items() if key not in ("error", "code", "event")}
    code = str(body.get("code", "publish_failed"))
    return CommandError(
        code,
        str(body.get("error", "the platform gave no reason: see `logs/platform.log` in its home")),
        exit_code=ExitCode.USAGE if code == _INVALID_SPEC else ExitCode.DEPLOY_FAILED,
        **details,
    )


def usage(sentence: str) -> CommandError:
    """Return the error of a command line that cannot mean anything."""
    return CommandError("usage", sentence)


def _exit_code(status: int, code: str) -> ExitCode:
    if status == 404:
        return ExitCode.NOT_FOUND
    if code in _TIMEOUT_CODES:
        return ExitCode.TIMEOUT
    return ExitCode.USAGE if code == _INVALID_SPEC else ExitCode.ERROR
