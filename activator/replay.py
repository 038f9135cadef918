"""Whether a call whose replica died is tried again. Pure."""

from __future__ import annotations

from serve.core.events import ExitReason
from serve.core.scaling import Exited

REPLAYABLE_ENGINES = frozenset({"onnx", "torch", "tensorrt", "scripted"})
"""Running a model twice harms nobody; a user's own code may have had effects."""
MAX_STRIKES = 2
"""A replica that dies by itself may have died of the call: the second such death is the last."""
MAX_TRIES = 5
"""Whatever they died of, no call sees more replicas die."""


def is_strike(exited: Exited) -> bool:
    """Return whether what was inside may be what the replica died of: nobody is known to have ended it."""
    return not (exited.is_killed_from_outside or exited.reason is ExitReason.STOPPED)


def may_try_again(engine: str, tries: int, strikes: int) -> bool:
    """Return whether a call goes to another replica after `tries` that died, `strikes` of them perhaps of it."""
    return engine in REPLAYABLE_ENGINES and strikes < MAX_STRIKES and tries < MAX_TRIES
