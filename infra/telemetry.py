"""Spans as OpenTelemetry has them. They are sent by a thread of their own, and rather lost than waited for."""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Final

from msgspec.structs import replace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from domain.correlation import Correlation, Kind, Note, correlated, current, current_job
from infra.settings import masked

PATH: Final = "/v1/traces"
CLOSING_SECONDS: Final = 3.0
NAME: Final = "text2song"
KINDS: Final[Mapping[Kind, SpanKind]] = {
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}

logger: Final = logging.getLogger(__name__)


class Traces:
    """OpenTelemetry's other variables (OTEL_SERVICE_NAME, OTEL_EXPORTER_OTLP_HEADERS …) hold as everywhere."""

    def __init__(self, role: str, endpoint: str) -> None:
        # It says the same in its own words at every try.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL + 1)
        named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": f"{NAME}-{role}"}
        resource = Resource.create({**named, "service.version": version("text2song-studio")})
        self._exporter = _Exporter(endpoint)
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer: Tracer = self._provider.get_tracer(NAME)

    @contextmanager
    def span(self, name: str, kind: Kind, attributes: Mapping[str, str | int], /) -> Iterator[Note]:
        """As Spans."""
        before = current() or Correlation("")
        carrier = {"traceparent": before.traceparent} if before.traceparent else {}
        parent = TraceContextTextMapPropagator().extract(carrier, Context())
        told = {key: value for key, value in (("text2song.correlation_id", before.id),) if value}
        with self._tracer.start_as_current_span(name, parent, KINDS[kind], {**attributes, **told}) as span:
            place = span.get_span_context()
            here = f"00-{place.trace_id:032x}-{place.span_id:016x}-{place.trace_flags:02x}"
            with correlated(replace(before, traceparent=here), current_job()):
                yield span.set_attributes

    def flush(self) -> None:
        """Sends at once what has gathered."""
        self._provider.force_flush()

    def close(self) -> None:
        """Sends what is left, for a few seconds at most."""
        self._exporter.is_closing = True
        shutdown: Callable[[], None] = self._provider.shutdown
        closing = threading.Thread(target=shutdown, daemon=True)
        closing.start()
        closing.join(CLOSING_SECONDS)


class _Exporter(SpanExporter):
    """Says once that the collector takes nothing, and once that it does again."""

    def __init__(self, endpoint: str) -> None:
        self._shown = masked("otlp_endpoint", endpoint)
        self._inner = OTLPSpanExporter(endpoint.rstrip("/") + PATH)
        self._is_away = False
        self.is_closing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self.is_closing and self._is_away:
            return SpanExportResult.FAILURE
        result = self._inner.export(spans)
        is_away = result is not SpanExportResult.SUCCESS
        if is_away and not self._is_away:
            logger.warning("%s takes no traces: they are dropped until it does. Nothing else waits.", self._shown)
        elif self._is_away and not is_away:
            logger.warning("%s takes traces again.", self._shown)
        self._is_away = is_away
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()  # type: ignore[no-untyped-call]
