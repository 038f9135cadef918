"""Whether what a caller was told is true, at the instant in which it is told."""

from __future__ import annotations

from activator.calls import Reply
from serve.core import errors
from serve.core.clock import NS_PER_MS, NS_PER_S
from serve.core.errors import ServeError
from serve.core.ids import RevisionKey
from serve.core.revision import State
from simulator.callers import SimulatedCall
from simulator.platform import SimulatedPlatform
from simulator.work import Effect
from tests.sim.violation import Violation, must

LATE_NS = 6 * NS_PER_MS
"""What a deadline may be late: the resolution of timers, and the pause between two looks at a line."""
HELD_LATE_NS = NS_PER_S + LATE_NS
"""While the disk refuses, answers that are held back are looked at once a second."""


def late_ns(platform: SimulatedPlatform) -> int:
    may_be_held = platform.disk.has_refused or platform.accounts.writer.waits_for_sync
    return HELD_LATE_NS if may_be_held else LATE_NS


def check_outcome(platform: SimulatedPlatform, call: SimulatedCall) -> None:
    """Raise Violation if this end of an accepted call is not true."""
    must(call.ends == 1, f"{call.request_id} ended {call.ends} times")
    now_ns = platform.clock.monotonic_ns()
    must(
        now_ns <= call.deadline_ns + late_ns(platform),
        f"{call.request_id} ended {(now_ns - call.deadline_ns) / 1e9} s late",
    )
    if isinstance(call.outcome, Reply):
        status = call.outcome.head.status
        expected = 500 if call.work.effect is Effect.ERROR else 200
        must(call.work.effect in {Effect.ANSWER, Effect.ERROR}, f"{call.request_id} cannot have been answered")
        must(status == expected, f"{call.request_id} was answered {status}")
    elif isinstance(call.outcome, ServeError):
        check_refusal(platform, call.key, call.outcome, call)


def check_refusal(
    platform: SimulatedPlatform, key: RevisionKey | None, error: ServeError, call: SimulatedCall | None = None
) -> None:
    """Raise Violation if the reason does not hold. `call`: one that was accepted before."""
    gate = platform.router._gates.get(key) if key is not None else None
    fleet = platform.autoscaler._scaler.fleets.get(key) if key is not None else None
    now_ns = platform.clock.monotonic_ns()
    match error:
        case errors.QueueFull():
            holds = gate is not None and gate.pending >= gate.revision.spec.queue
        case errors.QueueTimeout():
            holds = call is None or (call.wait_until_ns <= now_ns and call.tries == 0)
        case errors.ExecutionTimeout():
            assert call is not None
            assert gate is not None
            holds = now_ns >= call.inside_until_ns(gate._execution_timeout_ns)
        case errors.ReplicaLost():
            holds = call is not None and call.tries > 0
        case errors.ModelFailed():
            holds = fleet is not None and fleet.failure is not None
        case errors.NoCapacity():
            holds = fleet is not None and fleet.need_bytes > platform.machine.memory_budget_bytes
        case errors.UnknownVersion():
            route = platform.router.routes.get(key.name) if key is not None else None
            holds = key is not None and (route is None or key.number not in route.revisions)
        case errors.UnknownModel():
            holds = True  # nobody routes there any more: looked at by who asked
        case errors.Draining():
            holds = platform.router.is_draining
        case errors.StorageFull():
            # Where answers wait for a sync, one that takes too long is a disk that did not take them in time.
            holds = platform.accounts.writer.is_blocked or platform.accounts.writer.waits_for_sync
        case errors.Publishing():
            holds = any(route.state is State.PUBLISHING for route in platform.router.routes.values())
        case _:
            raise Violation(f"nobody may be told {type(error).__name__}: {error}")
    must(holds, f"what {call.request_id if call else 'a caller'} was told is not true: {error}")
