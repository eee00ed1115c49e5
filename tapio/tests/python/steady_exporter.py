"""Exports spans with the OpenTelemetry SDK from several threads without a pause, until an export fails.

Arguments: OTLP gRPC endpoint, threads, spans per export. Prints `tried T N` before and `acked T N` after each export that
was acknowledged; the spans of an export are named `T-N-0`, `T-N-1`, …
"""

import sys
import threading

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

endpoint, threads, spans = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
printing = threading.Lock()


def say(text):
    with printing:
        print(text, flush=True)


def work(thread):
    memory = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource.create({"service.name": "steady"}))
    provider.add_span_processor(SimpleSpanProcessor(memory))
    tracer = provider.get_tracer("steady-exporter")
    # One attempt: what is sent again after an answer was lost may rightly be stored twice.
    exporter = OTLPSpanExporter(endpoint=endpoint, insecure=True, timeout=30)
    exporter._retryable_error_codes = frozenset()
    number = 0
    while True:
        for index in range(spans):
            tracer.start_span(f"{thread}-{number}-{index}").end()
        batch = memory.get_finished_spans()
        memory.clear()
        say(f"tried {thread} {number}")
        if exporter.export(batch) != SpanExportResult.SUCCESS:
            return
        say(f"acked {thread} {number}")
        number += 1


workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
