"""OpenTelemetry's SDK with its exporters in memory, and what they were given."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, Metric
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cached_session import Instrumented, instrument
from cached_session.session.telemetry import Target


class Sdk:
    """One provider of each kind."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self._exporter = InMemorySpanExporter()
        self.meters = MeterProvider([self._reader], shutdown_on_exit=False)
        self.tracers = TracerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))

    def instrument(self, target: Target) -> Instrumented:
        return instrument(target, meter_provider=self.meters, tracer_provider=self.tracers)

    def metrics(self) -> list[Metric]:
        """What a collection gives now."""
        data = self._reader.get_metrics_data()
        if data is None:
            return []
        return [
            metric
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]

    def values(self, name: str) -> dict[tuple[Any, ...], float]:
        """A metric's values by its attributes' values, in the order of their names.

        Of a histogram, how many were recorded.
        """
        return {
            tuple(value for _, value in sorted((point.attributes or {}).items())): getattr(
                point, "count", getattr(point, "value", None)
            )
            for metric in self.metrics()
            if metric.name == f"cached_session.{name}"
            for point in metric.data.data_points
        }

    def spans(self, name: str | None = None) -> list[ReadableSpan]:
        """The spans that have ended, in that order."""
        return [
            span
            for span in self._exporter.get_finished_spans()
            if name in (None, span.name.removeprefix("cached_session."))
        ]

    def shutdown(self) -> None:
        self.meters.shutdown()
        self.tracers.shutdown()
