"""Figures for Prometheus, on `/metrics`. No label holds a user's, a dataset's or a job's name.

    metrics.watch("taciturn_jobs", "Jobs by state.", "state", jobs.count_by_state)

`watch` asks when Prometheus does; what fails then is left out of that answer.

Of several processes on one gateway, any gives the figures of all, through files that they share.
`prometheus_client` decides for them when it is imported first: if PROMETHEUS_MULTIPROC_DIR is set.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

_log = logging.getLogger("taciturn.metrics")
_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)

SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that names the folder of what several processes count."""

Reading = Callable[[], Mapping[str, float]]


def forget_dead_processes() -> None:
    """Remove the gauges of processes that have ended; what they counted stays."""
    for path in Path(os.environ[SHARED]).glob("gauge_live*_*.db") if SHARED in os.environ else ():
        pid = int(path.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            mark_process_dead(pid)  # type: ignore[no-untyped-call]


class Metrics:
    """Counters and measurements of a gateway."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._watched = CollectorRegistry()
        self._own: list[tuple[Gauge, Reading]] = []
        self._requests = Counter(
            "taciturn_requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "taciturn_request_seconds",
            "Time to the first byte of the answer.",
            ("route",),
            buckets=_BUCKETS_S,
            registry=self._registry,
        )

    @property
    def shared(self) -> bool:
        """True if several processes count into files that they share."""
        return SHARED in os.environ

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answer. `route` is a template such as /v1/jobs/{job_id}, never a path."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def watch(self, name: str, text: str, label: str, read: Reading) -> None:
        """Show what `read` says, one gauge per value of the label, a fixed set of words."""
        self._watched.register(_Watched(name, text, label, read))

    def watch_own(self, name: str, text: str, label: str, read: Reading) -> None:
        """Report a figure of this process alone, as `watch` does; those of all processes are added
        up, as of the last `refresh` where there are several."""
        if not self.shared:
            self.watch(name, text, label, read)
            return
        gauge = Gauge(name, text, (label,), multiprocess_mode="livesum", registry=self._registry)
        self._own.append((gauge, read))

    def refresh(self) -> None:
        """Tell the other processes what `watch_own` watches here."""
        for gauge, read in self._own:
            for value, figure in read().items():
                gauge.labels(value).set(figure)

    def text(self) -> bytes:
        """Figures in Prometheus' format."""
        registry = self._registry
        if self.shared:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry) + generate_latest(self._watched)


class _Watched(Collector):
    def __init__(self, name: str, text: str, label: str, read: Reading) -> None:
        self._name, self._text, self._label, self._read = name, text, label, read

    def describe(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(self._name, self._text, labels=[self._label])

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(self._name, self._text, labels=[self._label])
        try:
            for value, figure in self._read().items():
                family.add_metric([value], figure)
        except Exception:
            _log.exception("a figure could not be read", extra={"metric": self._name})
        yield family
