"""Traces for OpenTelemetry: a span for each request, and in it parse, queue, compute and encode.

Spans are made after the answer, of times that are measured anyway: a service that does not trace
imports nothing of this and does nothing for it.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterable, Mapping

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

__all__ = ["Tracer"]


# What OpenTelemetry takes for a header; anything else it writes to the log, and leaves out.
HEADER = re.compile(r"[!#-'*+.0-9A-Z^-z|~-]+[ \t]*=[ \t]*[ !#-+\--:<-\[\]-~]*")
CLOSE_SECONDS = 3.0
HEADERS = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")


class Tracer:
    """Exports by OTLP as the standard ``OTEL_*`` variables say, or to `exporter`.

    Raises ValueError where they cannot be meant.
    """

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        for variable in HEADERS:
            for header in filter(None, map(str.strip, os.environ.get(variable, "").split(","))):
                if not HEADER.fullmatch(header):  # not shown: it may be a token
                    raise ValueError(f"{variable}: state headers as name=value, with commas")
        # A name in OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES wins.
        named = Resource.create().attributes.get(SERVICE_NAME, "")
        name = "iafvae" if str(named).startswith("unknown_service") else str(named)
        self._provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("iafvae")
        self._propagator = TraceContextTextMapPropagator()

    def request(
        self,
        headers: Mapping[str, str],
        name: str,
        seconds: float,
        parts: Iterable[tuple[str, float]],
        attributes: Mapping[str, str],
        *,
        failed: bool,
    ) -> str | None:
        """Export a request that ended now and took `seconds`, its `parts` one after another.

        It belongs to the trace that `headers` name (W3C trace context); `failed` by a fault of the
        service. Gives the trace's id in
        hexadecimal, None for one that is not sampled.
        """
        end = time.time_ns()
        start = end - round(1e9 * seconds)
        span = self._tracer.start_span(
            name,
            self._propagator.extract(headers),
            SpanKind.SERVER,
            dict(attributes),
            start_time=start,
        )
        if not span.is_recording():
            return None
        if failed:
            span.set_status(Status(StatusCode.ERROR))
        inside, at = set_span_in_context(span), start
        for part, duration in parts:
            child = self._tracer.start_span(part, inside, start_time=at)
            at += round(1e9 * duration)
            child.end(at)
        span.end(end)
        return f"{span.get_span_context().trace_id:032x}"

    def close(self) -> None:
        """Export the spans that are still buffered, and stop; not for long, where no collector
        takes them."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)
