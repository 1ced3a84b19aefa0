"""Metrics in Prometheus' text format: requests, jobs, the queue and the models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

if TYPE_CHECKING:
    from reverie.server.dispatcher import Dispatcher


class Metrics:
    """What a server counts."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        labels = ["method", "route", "status"]
        self._requests = Counter("reverie_requests", "Requests answered.", labels, registry=self._registry)
        self._seconds = Histogram("reverie_request_seconds", "Time to answer.", ["route"], registry=self._registry)
        self.dispatcher: Dispatcher | None = None
        self._registry.register(self)

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """Yield what is known of the queue at this moment, as prometheus_client asks."""
        if (dispatcher := self.dispatcher) is None:
            return
        busy = sum(worker.task is not None for worker in dispatcher.workers)
        values = {"jobs_waiting": len(dispatcher.waiting), "workers_busy": busy, "workers": len(dispatcher.workers)}
        for name, value in {**values, "models_loaded": len(dispatcher.loaded)}.items():
            yield GaugeMetricFamily(f"reverie_{name}", f"{name.replace('_', ' ')} now", value=value)
        jobs = CounterMetricFamily("reverie_jobs", "Jobs that ended.", labels=["kind", "state"])
        for (kind, state), count in dispatcher.finished.items():
            jobs.add_metric([kind, state], count)
        yield jobs

    def text(self) -> bytes:
        """Return all of it as Prometheus reads it."""
        return generate_latest(self._registry)
