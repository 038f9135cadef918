"""Every metric of the platform, declared once. Described for users in `docs/metrics.md` (held complete by a test).

Labels stay bounded: only `deployment` follows what users make, and its series are born at first use and removed an
hour after the last one.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector

from serve.core.clock import NS_PER_S
from serve.core.events import ExitReason, Phase

SERIES_LIFETIME_NS = 3600 * NS_PER_S
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Declared(NamedTuple):
    """A metric as the docs tell it."""

    name: str
    kind: str
    text: str
    labels: tuple[str, ...]


class RequestSeconds(Collector):
    """`serve_request_seconds`: a histogram by whether a request waited for a cold start.

    Observing is two list operations, a tenth of what the library's own histogram takes: it is on the hot path.
    """

    declared = Declared(
        "serve_request_seconds",
        "histogram",
        "Request head received to last byte handed to the socket, by whether it waited for a cold start.",
        ("cold",),
    )

    def __init__(self, registry: CollectorRegistry) -> None:
        self._counts = {is_cold: [0] * (len(_SECONDS) + 1) for is_cold in (False, True)}
        self._sums = {False: 0.0, True: 0.0}
        registry.register(self)

    def observe(self, is_cold: bool, seconds: float) -> None:
        self._counts[is_cold][bisect.bisect_left(_SECONDS, seconds)] += 1
        self._sums[is_cold] += seconds

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self.declared.name, self.declared.text, labels=self.declared.labels)
        bounds = [*(str(float(bound)) for bound in _SECONDS), "+Inf"]
        for is_cold, counts in self._counts.items():
            buckets = list(zip(bounds, itertools.accumulate(counts), strict=True))
            family.add_metric([str(int(is_cold))], buckets, self._sums[is_cold])
        yield family


class RequestCounts(Collector):
    """`serve_requests_total`: answers by deployment and status class.

    On the hot path, too: counting is one dict operation, a fifth of what the library's own counter takes.
    """

    declared = Declared(
        "serve_requests_total",
        "counter",
        "Attempts that reached a replica, by deployment and HTTP status class.",
        ("deployment", "status"),
    )

    def __init__(self, registry: CollectorRegistry) -> None:
        self._counts: dict[tuple[str, int], int] = {}
        registry.register(self)

    def count(self, deployment: str, status: int) -> None:
        series = (deployment, status // 100)
        self._counts[series] = self._counts.get(series, 0) + 1

    def forget(self, deployment: str) -> None:
        for series in [series for series in self._counts if series[0] == deployment]:
            del self._counts[series]

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(self.declared.name, self.declared.text, labels=self.declared.labels)
        for (deployment, status_class), count in self._counts.items():
            family.add_metric([deployment, f"{status_class}xx"], count)
        yield family


class Metrics:
    """The platform's metrics and their registry. Owned by the event loop; one instance a process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = RequestCounts(self.registry)
        self.refusals = self._counter("serve_refusals", "Requests refused before any replica, by stable code.", "code")
        self.request_seconds = RequestSeconds(self.registry)
        self.phase_seconds = Histogram(
            "serve_cold_start_phase_seconds",
            "Cold starts by phase.",
            ("phase",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        for phase in Phase:
            self.phase_seconds.labels(phase.value)
        self.replicas = self._gauge("serve_replicas", "Replicas by deployment and state.", "deployment", "state")
        self.pending = self._gauge("serve_pending_requests", "Requests that wait for a replica.", "deployment")
        self.replica_exits = self._counter("serve_replica_exits", "Replicas that ended, by reason.", "reason")
        for reason in ExitReason:
            self.replica_exits.labels(reason.value)
        self.replays = self._counter("serve_replays", "Requests sent again because their replica died.")
        self.deployments = self._gauge("serve_deployments", "Deployments by state.", "state")
        self.reserved_memory = self._gauge("serve_reserved_memory_bytes", "Memory reserved by live replicas.")
        self.memory_budget = self._gauge("serve_memory_budget_bytes", "Memory that all replicas together may hold.")
        self.store_bytes = self._gauge("serve_store_bytes", "Disk used by the store of models.")
        self.store_evictions = self._gauge(
            "serve_store_evictions", "Models dropped from the store for space since the platform started."
        )
        self.journal_records = self._counter("serve_journal_records", "Records written to the billing journal.")
        self.journal_errors = self._counter("serve_journal_errors", "Journal writes that failed.")
        self.control_requests = self._counter("serve_control_requests", "Calls of /api/v1 by status class.", "status")
        self._deployment_used_ns: dict[str, int] = {}

    def touch(self, deployment: str, now_ns: int) -> None:
        """The deployment's series are in use: they live another hour."""
        self._deployment_used_ns[deployment] = now_ns

    def answered(self, deployment: str, status: int, now_ns: int) -> None:
        """Count one answer."""
        self._deployment_used_ns[deployment] = now_ns
        self._requests.count(deployment, status)

    def forget(self, deployment: str) -> None:
        """Remove the deployment's series."""
        self._deployment_used_ns.pop(deployment, None)
        self._requests.forget(deployment)
        self.replicas.remove_by_labels({"deployment": deployment})
        self.pending.remove_by_labels({"deployment": deployment})

    def exposition(self, now_ns: int) -> bytes:
        """Return the Prometheus text format, after dropping series nobody used for an hour."""
        for deployment, used_ns in list(self._deployment_used_ns.items()):
            if now_ns - used_ns > SERIES_LIFETIME_NS:
                self.forget(deployment)
        return generate_latest(self.registry)

    def declared(self) -> list[Declared]:
        """Return what is declared here, for the docs."""
        found = [RequestCounts.declared, RequestSeconds.declared]
        for metric in vars(self).values():
            if isinstance(metric, MetricWrapperBase):
                [family] = metric.describe()
                name = family.name + ("_total" if family.type == "counter" else "")
                found.append(Declared(name, family.type, family.documentation, tuple(metric._labelnames)))  # noqa: SLF001
        return found

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)
