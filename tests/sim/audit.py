"""The books of a whole story, held against what callers, replicas and kills know."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from activator.calls import Reply
from billing.ledger import Ledger
from billing.lives import LifeState, RecordedLife, read_lives
from billing.verify import _broken_laws, verify
from serve.core.errors import Draining, StorageFull
from simulator.callers import SimulatedCall
from tests.sim.violation import must

if TYPE_CHECKING:
    from tests.sim.world import Life, World

VERIFIED = 6
"""Of so many stories one goes through all of `serve bill verify`, which takes as long as the story."""


def audit(world: World) -> None:
    """Raise Violation where the ledger is not what happened."""
    with closing(Ledger(Path(":memory:"))) as ledger:
        ledger.ingest(world.folder / "journal")
        connection = ledger.connection
        connection.row_factory = sqlite3.Row
        for row in connection.execute("SELECT * FROM problems"):
            must(False, f"the journal is damaged: {row['sentence']}")
        records = {row["id"]: dict(row) for row in connection.execute("SELECT * FROM requests ORDER BY id")}
        known: set[str] = set()
        for number, life in enumerate(world.lives):
            for call in life.platform.calls:
                known.add(call.request_id)
                _check_call(
                    life,
                    call,
                    records.get(call.request_id),
                    power_lost=any(later.lost_power for later in world.lives[number:]),
                )
        for request_id, record in records.items():
            must(request_id in known or not record["charged"], f"{request_id} was never made")  # or it is a probe
            world.note(f"{request_id} {record['status']} {record['busy_us']} {record['cold_us']} {record['queue_us']}")
        lives = {life.replica: life for life in read_lives(connection)}
        _check_lives(world, lives, records)
        probes = records.keys() - known
    if world.scenario.seed % VERIFIED == 0:
        _verify(world, probes)


def _check_call(life: Life, call: SimulatedCall, record: dict[str, Any] | None, *, power_lost: bool) -> None:
    """Answered once, recorded once; what is recorded and was not answered was in flight when the platform died."""
    must(call.ends == 1 or (call.ends == 0 and life.was_killed), f"{call.request_id} ended {call.ends} times")
    if isinstance(call.outcome, Reply) and call.ends:
        platform = life.platform
        is_safe = not power_lost or platform.accounts.writer.waits_for_sync
        is_safe = is_safe or call.ended_ns < platform.safe_until_ns
        if record is None:
            must(not is_safe, f"{call.request_id} was answered, and the ledger does not have it")
            return
        must(record["status"] == call.status, f"{call.request_id} got {call.status}, recorded is {record['status']}")
        must(record["rows"] == call.work.rows, f"{call.request_id} had {call.work.rows} rows, not {record['rows']}")
        must(bool(record["charged"]) == (call.status < 500), f"{call.request_id} is charged as it should not be")
    elif record is not None and record["charged"]:
        # Told that the disk did not sync its record in time, which may be there all the same.
        is_doubtful = isinstance(call.outcome, StorageFull | Draining) and life.platform.accounts.writer.waits_for_sync
        is_paid = call.outcome is None or is_doubtful  # it was in flight at a kill, or its caller left
        must(is_paid, f"{call.request_id} is charged, and nobody got an answer")


def _check_lives(world: World, lives: dict[str, RecordedLife], records: dict[str, dict[str, Any]]) -> None:
    sums: dict[str, tuple[int, int]] = {}
    for record in records.values():
        busy_us, cold_us = sums.get(record["replica"], (0, 0))
        sums[record["replica"]] = (busy_us + record["busy_us"], cold_us + record["cold_us"])
    must(set(sums) <= set(lives), "a request was answered by a replica without a life")
    for replica_id, recorded in sorted(lives.items()):
        world.note(f"{replica_id} {recorded.state} {tuple(recorded.last.parts)}")
        for sentence in _broken_laws(recorded, *sums.get(replica_id, (0, 0))):
            must(False, sentence)
    for number, life in enumerate(world.lives):
        has_lost = life.was_killed or life.lost_records
        power_lost = any(later.lost_power for later in world.lives[number:])
        for replica in life.platform.driver.begun:
            found = lives.get(replica.order.replica_id)
            if found is None:
                must(has_lost or power_lost, f"{replica.order.replica_id} lived, and the books do not know it")
                continue
            must(found.state is not LifeState.OPEN or power_lost, f"{found.replica} is on the books for ever")
            if has_lost:
                continue
            must(found.state is LifeState.CLOSED, f"{found.replica} was never closed")
            if replica.has_drained:
                metered_us = replica.meter.total_busy_ns // 1000
                must(
                    abs(found.last.parts.busy_us - metered_us) <= 1,
                    f"{found.replica} was busy for {metered_us} µs, the books say {found.last.parts.busy_us}",
                )


def _verify(world: World, probes: set[str]) -> None:
    path = world.folder / "ledger.db"
    journal = world.folder / "journal"
    with closing(Ledger(path)) as ledger:
        ledger.ingest(journal)
    found = verify(path, journal)
    must(found.ok, f"verify finds {found.problems[:3]}")
    calls = [(life, call) for life in world.lives for call in life.platform.calls]
    in_flight = {call.request_id for life, call in calls if life.was_killed and not call.ends}
    answered = {call.request_id for _, call in calls if isinstance(call.outcome, Reply)}
    unsent = {request_id for request_id in found.maybe_unsent if request_id not in answered}
    told_no = {call.request_id for _, call in calls if call.is_left}
    must(
        unsent <= in_flight | told_no | probes,
        f"verify lists requests that were not in flight: {unsent - in_flight - told_no - probes}",
    )
