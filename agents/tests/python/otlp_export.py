"""Exports traces, metrics and logs with the OpenTelemetry SDK and prints what it sent as one line of JSON.

usage: otlp_export.py grpc|http ENDPOINT gzip|none
"""

import json
import logging
import sys

from opentelemetry import trace
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode

protocol, endpoint, compression = sys.argv[1:4]

if protocol == "grpc":
    import grpc
    from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    options = {
        "insecure": True,
        "compression": grpc.Compression.Gzip if compression == "gzip" else grpc.Compression.NoCompression,
    }
    endpoints = dict.fromkeys(("traces", "metrics", "logs"), endpoint)
else:
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    options = {"compression": Compression.Gzip if compression == "gzip" else Compression.NoCompression}
    endpoints = {signal: f"{endpoint}/v1/{signal}" for signal in ("traces", "metrics", "logs")}

resource = Resource.create(
    {
        "service.name": "checkout",
        "service.namespace": "shop",
        "k8s.pod.name": "checkout-7c9d8b6f5-x2x2x",
        "k8s.deployment.name": "checkout",
        "process.pid": 4242,
    }
)

tracers = TracerProvider(resource=resource)
tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoints["traces"], **options)))
tracer = tracers.get_tracer("python-test")

meters = MeterProvider(
    resource=resource,
    metric_readers=[PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=endpoints["metrics"], **options))],
)
meter = meters.get_meter("python-test")

loggers = LoggerProvider(resource=resource)
loggers.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(endpoint=endpoints["logs"], **options)))
log = logging.getLogger("shop.checkout")
log.setLevel(logging.INFO)
log.propagate = False
log.addHandler(LoggingHandler(logger_provider=loggers))

sent = []


def remember(span):
    context = span.get_span_context()
    parent = f"{span.parent.span_id:016x}" if span.parent else "0" * 16
    sent.append([f"{context.trace_id:032x}", f"{context.span_id:016x}", parent, span.name])


counter = meter.create_counter("shop.orders", unit="{order}")
latency = meter.create_histogram("http.server.request.duration", unit="s")
for order in range(10):
    with tracer.start_as_current_span("POST /orders", kind=SpanKind.SERVER) as server:
        server.set_attribute("http.request.method", "POST")
        server.set_attribute("http.response.status_code", 500 if order == 9 else 201)
        with tracer.start_as_current_span("INSERT orders", kind=SpanKind.CLIENT) as client:
            client.set_attribute("db.system.name", "postgresql")
            client.set_attribute("server.address", "orders-db")
            if order == 9:
                client.record_exception(TimeoutError("database call timed out"))
                client.set_status(StatusCode.ERROR, "timed out")
                log.error("order %d failed", order)
                server.set_status(StatusCode.ERROR)
            remember(client)
        remember(server)
    counter.add(1, {"shop.kind": "book"})
    latency.record(0.25 * order)

flushed = tracers.force_flush() and meters.force_flush() and loggers.force_flush()
print(json.dumps({"spans": sent, "flushed": bool(flushed)}))
tracers.shutdown()
