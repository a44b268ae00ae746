# SPDX-License-Identifier: Apache-2.0
"""The receiver of the tests takes what OpenTelemetry's own exporters send."""

from typing import Literal

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from support.collector.otlp_receiver import Receiver


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_takes_spans_of_the_sdk(protocol: Literal["grpc", "http"]) -> None:
    """A span of the SDK arrives with its parent, its attributes and its event."""
    with Receiver(protocol) as receiver:
        exporter = (
            GrpcExporter(receiver.endpoint)
            if protocol == "grpc"
            else HttpExporter(f"{receiver.endpoint}/v1/traces")
        )
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        tracer = provider.get_tracer("test")
        with (
            tracer.start_as_current_span("outer") as outer,
            tracer.start_as_current_span("inner", attributes={"n": 3}) as inner,
        ):
            inner.add_event("seen")
        received = receiver.wait_for(lambda r: len(r.spans) == 2)
        provider.shutdown()
    [found] = received.named("inner")
    assert found.parent == outer.get_span_context().span_id
    assert found.context.trace_id == outer.get_span_context().trace_id
    assert found.attributes == {"n": 3}
    assert [event.name for event in found.events] == ["seen"]
    assert received.trace(found.context.trace_id) == received.spans
