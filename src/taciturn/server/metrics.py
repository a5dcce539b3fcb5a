"""Figures for Prometheus, on `/metrics`. No label holds a user's, a dataset's or a job's name.

    metrics.watch("taciturn_jobs", "Jobs by state.", "state", jobs.count_by_state)

`watch` asks when Prometheus does; what fails then is left out of that answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_log = logging.getLogger("taciturn.metrics")
_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)

Reading = Callable[[], Mapping[str, float]]


class Metrics:
    """What a gateway counts and measures of itself."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
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

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answer. `route` is a template such as /v1/jobs/{job_id}, never a path."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def watch(self, name: str, text: str, label: str, read: Reading) -> None:
        """Show what `read` says, one gauge per value of the label, a fixed set of words."""
        self._registry.register(_Watched(name, text, label, read))

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self._registry)


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
