"""Metrics: what a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from ortcam.serving.answers import Answer
from ortcam.serving.refusal import Kind
from ortcam.serving.service import Service

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counts requests, photos and masked inputs. It has a registry of its own."""

    def __init__(self, service: Service) -> None:
        self._registry = CollectorRegistry()
        labels = ("model", "door")
        self._requests = Counter(
            "ortcam_requests", "Requests by outcome: ok, or why they were refused.", (*labels, "outcome"),
            registry=self._registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "ortcam_request_seconds", "Seconds from a request to its answer, of answered requests.", labels,
            registry=self._registry, buckets=_SECONDS,
        )  # fmt: skip
        self._photos = Counter("ortcam_photos", "Photos that were answered.", ("model",), registry=self._registry)
        self._inputs = Counter(
            "ortcam_masked_inputs", "Masked inputs that were run for answers.", ("model",), registry=self._registry
        )
        self.pending_bytes = Gauge(
            "ortcam_pending_bytes", "Bytes of requests that are being read or wait.", registry=self._registry
        )
        self._registry.register(_Queues(service))
        ProcessCollector(registry=self._registry)

    def refused(self, model: str, door: str, kind: Kind) -> None:
        """Count a request that was refused; `model` is one that is served, or ""."""
        self._requests.labels(model, door, kind.name.lower()).inc()

    def answered(self, model: str, door: str, answer: Answer, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(model, door, "ok").inc()
        self._seconds.labels(model, door).observe(seconds)
        self._photos.labels(model).inc(len(answer.targets))
        self._inputs.labels(model).inc(sum(one.scored for one in answer.explained))

    def text(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self._registry)


class _Queues(Collector):
    """The state of the queues, read when it is asked for."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterable[Metric]:
        waiting = GaugeMetricFamily("ortcam_waiting_photos", "Photos that wait.", labels=["model"])
        for name, model in self._service.models.items():
            waiting.add_metric([name], model.worker.waiting)
        yield waiting
        ready = GaugeMetricFamily("ortcam_ready", "1 if requests are taken, 0 if not.")
        ready.add_metric([], float(self._service.ready))
        yield ready
