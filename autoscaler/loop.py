"""`Autoscaler`: what the platform, the control plane and the activator see of scaling."""

from __future__ import annotations

import asyncio
import logging

from autoscaler.fleet import Fleet
from autoscaler.history import ColdStartSummary, DecisionRecord
from autoscaler.replica import ReplicaStatus
from autoscaler.scaler import Scaler
from autoscaler.surroundings import Surroundings
from autoscaler.warm import WarmReport
from serve.core.errors import PublishError
from serve.core.events import Event, ExitReason, Stats
from serve.core.ids import ReplicaId, RevisionKey
from serve.core.revision import Revision, State

log = logging.getLogger(__name__)

_KILLED_EXIT_S = 5.0
"""Longest wait for the exit of killed processes."""
_WARM_SLACK_S = 10.0
"""How much longer than the start itself publishing waits, so that the start's own deadline speaks first."""


class Autoscaler:
    """Scales revisions. Owned by the event loop; implements `serve.core.scaling.DemandListener`.

    Every method but `warm`, `remove` and `shutdown` returns at once. Woken by events and by the instants its own
    decisions name, never by a tick.
    """

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._clock = around.clock
        self._all_gone = asyncio.Event()
        self._scaler = Scaler(around, on_all_gone=self._all_gone.set)
        around.metrics.memory_budget.set(around.memory_budget_bytes)

    # What the control plane says -------------------------------------------------------------------------------------

    def add(self, revision: Revision, *, reachable: bool = True, start_s: float | None = None) -> None:
        """Scale this revision from now on. The pool must know it already. Raise ValueError if it is here.

        `start_s`: how long its starts took before, until the first one here is known.
        """
        if revision.key in self._scaler.fleets:
            raise ValueError(f"{revision.key} is scaled already; use replace")
        fleet = Fleet(revision, is_reachable=reachable, now_ns=self._clock.monotonic_ns(), chance=self._around.chance)
        fleet.cold_starts.assume(start_s)
        self._scaler.fleets[revision.key] = fleet
        if reachable:
            self._look_if_needed(fleet)

    def replace(self, revision: Revision) -> None:
        """Take over what publishing learned of the same revision. Replicas that run keep their threads and memory."""
        fleet = self._scaler.fleets[revision.key]
        fleet.replace(revision)
        self._look_if_needed(fleet)

    def set_reachable(self, key: RevisionKey, is_reachable: bool) -> None:
        """Say whether calls are routed to the revision. One that gets none is kept only while it has requests."""
        fleet = self._scaler.fleets[key]
        if fleet.is_reachable != is_reachable:
            fleet.is_reachable = is_reachable
            self._look_if_needed(fleet)

    async def remove(self, key: RevisionKey) -> None:
        """Take the revision to zero and forget it; unknown ones are gone already. Goes on if the caller leaves.

        Requests inside finish, however long they take; `execution_timeout` is their limit.
        """
        fleet = self._scaler.fleets.get(key)
        if fleet is None:
            return
        if fleet.removed is None:
            fleet.removed = asyncio.get_running_loop().create_future()
            self._scaler.empty(fleet, "the revision is removed")
        await asyncio.shield(fleet.removed)

    async def warm(self, key: RevisionKey) -> WarmReport:
        """Return once a replica is ready for publishing, and hold it until `release`.

        Raise ModelInvalid, ModelUnsupported or FilesMissing as the replica says, PublishError with the sentence of
        its end otherwise, or if it does not fit into memory. Nothing is held then, nor if the caller leaves.
        """
        fleet = self._scaler.fleets[key]
        fleet.is_held = True
        ready = fleet.ready_replica()
        if ready is not None:
            return WarmReport.of(ready)
        waiter: asyncio.Future[WarmReport] = asyncio.get_running_loop().create_future()
        fleet.warm_waiters.append(waiter)
        try:
            self._scaler.look(fleet)
            async with asyncio.timeout(fleet.revision.spec.start_timeout + _WARM_SLACK_S):
                return await waiter
        except TimeoutError:
            self.release(key)
            why = self.decisions(key.name)[-1:]
            last = f" ({why[0].reason})" if why else ""
            raise PublishError(f"no replica of {key} was ready in time{last}; raise start_timeout") from None
        except BaseException:
            self.release(key)
            raise
        finally:
            if waiter in fleet.warm_waiters:
                fleet.warm_waiters.remove(waiter)

    def release(self, key: RevisionKey) -> None:
        """Publishing is done with the replica: from now on it is like any other, and its idle time begins."""
        fleet = self._scaler.fleets.get(key)
        if fleet is not None and fleet.is_held:
            fleet.is_held = False
            fleet.kept_ns = self._clock.monotonic_ns()
            self._look_if_needed(fleet)

    async def shutdown(self, deadline_s: float) -> None:
        """Drain every replica, kill those that are not gone after `deadline_s`, and return when none is left."""
        self._scaler.is_closing = True
        for fleet in list(self._scaler.fleets.values()):
            self._scaler.empty(fleet, "the platform is shutting down")
        actuator = self._scaler.actuator
        if not await self._wait_all_gone(deadline_s):
            for _, replica in list(actuator.replicas.values()):
                actuator.kill(replica, ExitReason.STOPPED)
            if not await self._wait_all_gone(_KILLED_EXIT_S):
                log.error("killed replicas did not exit", extra={"replicas": list(actuator.replicas)})
        self._scaler.timers.close()

    # What people ask -------------------------------------------------------------------------------------------------

    def describe(self, key: RevisionKey) -> list[ReplicaStatus]:
        """Return the revision's replicas that are not gone, oldest first."""
        fleet = self._scaler.fleets.get(key)
        return fleet.describe() if fleet is not None else []

    def state_of(self, key: RevisionKey) -> State:
        """Return the revision's state as callers see it; cold for one that is not scaled here."""
        fleet = self._scaler.fleets.get(key)
        return fleet.state_for_callers() if fleet is not None else State.COLD

    def failure_of(self, key: RevisionKey) -> str | None:
        """Return why the revision counts as failed; None while it does not."""
        fleet = self._scaler.fleets.get(key)
        return fleet.failure if fleet is not None else None

    def decisions(self, name: str) -> list[DecisionRecord]:
        """Return the last decisions about a deployment, oldest first."""
        return self._scaler.decisions.of(name)

    def cold_start_history(self, key: RevisionKey) -> ColdStartSummary:
        """Return how long recent starts of the revision took. Raise KeyError if it is not scaled here."""
        return self._scaler.fleets[key].cold_starts.summary()

    def expected_cold_start_s(self, key: RevisionKey) -> float | None:
        """Return the median of the revision's recent starts; None where nothing is known of any."""
        fleet = self._scaler.fleets.get(key)
        return fleet.cold_starts.expected_s() if fleet is not None else None

    # DemandListener --------------------------------------------------------------------------------------------------

    def poke(self, key: RevisionKey) -> None:
        fleet = self._scaler.fleets.get(key)
        if fleet is not None:
            self._scaler.poke(fleet)

    def replica_empty(self, replica_id: ReplicaId) -> None:
        self._scaler.actuator.empty(replica_id)

    def replica_event(self, replica_id: ReplicaId, event: Event) -> None:
        self._scaler.actuator.replica_event(replica_id, event)
        known = self._scaler.actuator.replicas.get(replica_id)
        if isinstance(event, Stats) and known is not None:
            # It has just become idle: those who wait for memory look first, then this one sets its idle timer.
            self._scaler.look_at_waiting()
            self._scaler.poke(known[0])

    def replica_overdue(self, replica_id: ReplicaId, sentence: str) -> None:
        self._scaler.actuator.overdue(replica_id, sentence)

    def replica_link_lost(self, replica_id: ReplicaId) -> None:
        self._scaler.actuator.link_lost(replica_id)

    # Within ----------------------------------------------------------------------------------------------------------

    def _look_if_needed(self, fleet: Fleet) -> None:
        """Without replicas and without a minimum there is nothing to decide before somebody asks."""
        if fleet.live or fleet.revision.spec.min:
            self._scaler.look(fleet)

    async def _wait_all_gone(self, deadline_s: float) -> bool:
        self._all_gone.clear()
        if self._scaler.actuator.replicas:
            try:
                async with asyncio.timeout(deadline_s):
                    await self._all_gone.wait()
            except TimeoutError:
                return False
        return True
