"""Metrics: bounded, and true to their names."""

from prometheus_client.parser import text_string_to_metric_families

from serve.core.clock import NS_PER_S
from serve.core.events import ExitReason, Phase
from serve.core.metrics import Metrics

HOUR_NS = 3600 * NS_PER_S


def use(metrics: Metrics, deployment: str, now_ns: int) -> None:
    metrics.answered(deployment, 200, now_ns)
    metrics.replicas.labels(deployment, "ready").set(1)
    metrics.replicas.labels(deployment, "starting").set(0)
    metrics.pending.labels(deployment).set(0)


def deployments(metrics: Metrics, now_ns: int) -> set[str]:
    families = text_string_to_metric_families(metrics.exposition(now_ns).decode())
    return {
        sample.labels["deployment"] for family in families for sample in family.samples if "deployment" in sample.labels
    }


def test_series_of_a_deployment_expire_an_hour_after_its_last_use() -> None:
    metrics = Metrics()
    use(metrics, "early", 0)
    use(metrics, "late", HOUR_NS // 2)
    assert deployments(metrics, HOUR_NS) == {"early", "late"}
    assert deployments(metrics, HOUR_NS + 1) == {"late"}
    metrics.touch("late", HOUR_NS)
    assert deployments(metrics, 2 * HOUR_NS) == {"late"}
    assert deployments(metrics, 2 * HOUR_NS + 1) == set()


def test_a_deployment_that_comes_back_counts_from_zero() -> None:
    metrics = Metrics()
    use(metrics, "digits", 0)
    metrics.exposition(HOUR_NS + 1)
    use(metrics, "digits", HOUR_NS + 2)
    assert metrics.registry.get_sample_value("serve_requests_total", {"deployment": "digits", "status": "2xx"}) == 1


def test_forgetting_removes_one_deployment_alone_and_may_be_repeated() -> None:
    metrics = Metrics()
    use(metrics, "digits", 0)
    use(metrics, "letters", 0)
    metrics.forget("digits")
    metrics.forget("digits")
    metrics.forget("never seen")
    assert deployments(metrics, 0) == {"letters"}


def test_every_metric_has_our_prefix_a_sentence_and_only_bounded_labels() -> None:
    declared = Metrics().declared()
    assert len(declared) > 10
    for metric in declared:
        assert metric.name.startswith("serve_")
        assert metric.text.endswith(".")
        assert set(metric.labels) <= {"deployment", "status", "code", "cold", "phase", "state", "reason"}


def test_phases_and_exit_reasons_are_there_from_the_start() -> None:
    registry = Metrics().registry
    for phase in Phase:
        assert registry.get_sample_value("serve_cold_start_phase_seconds_count", {"phase": phase.value}) == 0
    for reason in ExitReason:
        assert registry.get_sample_value("serve_replica_exits_total", {"reason": reason.value}) == 0


def test_two_platforms_in_one_process_do_not_share_figures() -> None:
    first, second = Metrics(), Metrics()
    first.replays.inc()
    assert second.registry.get_sample_value("serve_replays_total") == 0
