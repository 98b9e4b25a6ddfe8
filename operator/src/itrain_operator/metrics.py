"""Prometheus metrics `itrain_*`. No label bears a run's name: their number must not grow with the number of runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from itrain_contract.names import ConditionType, Phase
from itrain_contract.status import Condition, ITrainRunStatus

PASS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
LONG_BUCKETS = (10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 12 * 3600.0, 24 * 3600.0, 72 * 3600.0)

Gauges = Callable[[], float]


class _Phases(Collector):
    """Runs by phase, counted when asked."""

    def __init__(self, phases: Callable[[], dict[str, int]]) -> None:
        self._phases = phases

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily("itrain_runs", "ITrainRuns by phase", labels=["phase"])
        counted = self._phases()
        for phase in Phase:
            family.add_metric([phase.value], counted.get(phase.value, 0))
        yield family


class Metrics:
    """All metrics of one process, in a registry of their own."""

    def __init__(
        self,
        *,
        phases: Callable[[], dict[str, int]],
        queue_depth: Gauges,
        resync_age_s: Gauges,
        leading: Gauges,
    ) -> None:
        registry = self._registry = CollectorRegistry()
        registry.register(_Phases(phases))
        self._gauge("itrain_queue_depth", "Runs that wait for a worker", queue_depth)
        self._gauge("itrain_resync_age_seconds", "Seconds since the last whole list of runs and Jobs", resync_age_s)
        self._gauge("itrain_is_leader", "1 while this replica acts", leading)
        self.stage_seconds = Histogram(
            "itrain_stage_duration_seconds",
            "Running time of the attempt that completed a stage",
            ["stage"],
            registry=registry,
            buckets=LONG_BUCKETS,
        )
        self.quota_wait_seconds = Histogram(
            "itrain_quota_wait_seconds",
            "Time for which a Job was held by its queue",
            registry=registry,
            buckets=LONG_BUCKETS,
        )
        self.retries = Counter(
            "itrain_stage_retries", "Failed attempts that were tried again", ["stage"], registry=registry
        )
        self.preemptions = Counter("itrain_preemptions", "Attempts that were disrupted", registry=registry)
        self.gpu_seconds = Counter(
            "itrain_gpu_seconds", "GPU time that runs were charged", ["stage"], registry=registry
        )
        self.pass_seconds = Histogram(
            "itrain_reconcile_duration_seconds",
            "Duration of a pass",
            ["result"],
            registry=registry,
            buckets=PASS_BUCKETS,
        )
        self.errors = Counter("itrain_reconcile_errors", "Passes that failed", ["kind"], registry=registry)
        self.requests = Counter(
            "itrain_api_requests", "Requests to the API server", ["verb", "code"], registry=registry
        )
        self.status_writes = Counter("itrain_status_writes", "Statuses that were stored", registry=registry)
        self.events_dropped = Counter("itrain_events_dropped", "Events beyond a run's allowance", registry=registry)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)

    def request(self, verb: str, code: str) -> None:
        self.requests.labels(verb=verb, code=code).inc()

    def written(self, old: ITrainRunStatus, new: ITrainRunStatus) -> None:
        """What a stored status says to have happened since the one before."""
        self.status_writes.inc()
        stage = old.stage.value if old.stage is not None else ""
        if new.retries > old.retries:
            self.retries.labels(stage=stage).inc(new.retries - old.retries)
        if new.preemptions > old.preemptions:
            self.preemptions.inc(new.preemptions - old.preemptions)
        if new.gpu_seconds > old.gpu_seconds:
            self.gpu_seconds.labels(stage=stage).inc(new.gpu_seconds - old.gpu_seconds)
        for record in new.completed[len(old.completed) :]:
            self.stage_seconds.labels(stage=record.kind.value).observe(record.seconds)
        waited = quota_wait_s(old, new)
        if waited is not None:
            self.quota_wait_seconds.observe(waited)

    def _gauge(self, name: str, text: str, value: Gauges) -> None:
        Gauge(name, text, registry=self._registry).set_function(value)


def quota_wait_s(old: ITrainRunStatus, new: ITrainRunStatus) -> float | None:
    """For how long the quota was waited for, in the status in which it was granted."""
    before, now = _quota(old), _quota(new)
    if before is None or now is None or before.status != "False" or now.status != "True":
        return None
    return (now.last_transition_time - before.last_transition_time).total_seconds()


def _quota(status: ITrainRunStatus) -> Condition | None:
    return next((c for c in status.conditions if c.type == ConditionType.QUOTA_RESERVED), None)
