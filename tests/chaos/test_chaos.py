"""Twenty thousand requests while everything is killed; `make chaos` sends a million."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.__main__ import report
from tests.chaos.killer import KINDS
from tests.chaos.scenario import Outcome, Plan, run, show

REQUESTS = 10_000
PACE = 3.0

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def chaos(folder: Path, *kinds: str, seed: int) -> Outcome:
    outcome = run(folder, Plan(REQUESTS, seed, kinds, pace=PACE), show)
    assert not outcome.problems, report(outcome)
    assert outcome.requests == REQUESTS
    assert all(outcome.killed.counts[kind] for kind in kinds), "a run without kills proves nothing"
    return outcome


def test_nothing_fails_while_replicas_zygote_and_ledger_are_killed(tmp_path: Path) -> None:
    outcome = chaos(tmp_path, "replicas", "zygote", "ledger", seed=1)
    assert outcome.killed.replays, "some were killed with requests inside"
    assert not outcome.audit.counts["broken"]
    assert not outcome.audit.counts["extras"]


def test_every_answer_is_in_the_ledger_once_and_callers_who_retry_never_fail_while_the_platform_is_killed(
    tmp_path: Path,
) -> None:
    outcome = chaos(tmp_path, *KINDS, seed=2)
    assert outcome.audit.counts["broken"], "some requests were on their way when the platform died"
