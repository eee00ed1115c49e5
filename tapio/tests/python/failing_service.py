"""A service with the OpenTelemetry SDK whose requests fail, because its database refuses connections.

Arguments: OTLP gRPC endpoint, port of the database, number of requests.
"""

import socket
import sys
import time

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode

endpoint, port, requests = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
provider = TracerProvider(resource=Resource.create({"service.name": "checkout", "service.namespace": "shop"}))
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, insecure=True)))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("failing-service")

for _ in range(requests):
    with tracer.start_as_current_span("POST /pay", kind=SpanKind.SERVER) as request:
        with tracer.start_as_current_span(
            "SELECT orders",
            kind=SpanKind.CLIENT,
            record_exception=False,
            attributes={"db.system.name": "postgresql", "server.address": "orders-db", "server.port": port},
        ) as query:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=2).close()
            except OSError as error:
                query.set_attribute("error.type", type(error).__name__)
                query.record_exception(error)
                query.set_status(Status(StatusCode.ERROR, str(error)))
                request.set_attribute("http.response.status_code", 500)
                request.set_status(Status(StatusCode.ERROR))
    time.sleep(0.05)

print(f"exported {requests * 2 if provider.force_flush() else 0}")
provider.shutdown()
