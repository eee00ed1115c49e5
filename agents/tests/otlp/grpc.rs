//! OTLP over gRPC: errors of the protocol, as a plain gRPC client sees them.

use tapio_agents::sink::SINK_EVENTS_MAX;
use tapio_schemas::event::UnifiedEvent;

use crate::support::{MESSAGE_MAX, Running, config, python, spans_protobuf};

const TRACES: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

async fn call(running: &Running, compression: &str, count: usize, request: &[u8]) -> String {
    let (endpoint, count) = (running.grpc.to_string(), count.to_string());
    python("grpc_raw.py", &[&endpoint, TRACES, compression, &count], request).await
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_is_the_clients_fault_and_too_large_says_so() {
    let mut running = Running::start(config());
    let said = call(&running, "none", 1, b"\x0a\xff\xffgarbage").await;
    assert!(said.starts_with("INVALID_ARGUMENT "), "{said}");
    // Larger than allowed as sent, and only after decompression.
    for compression in ["none", "gzip"] {
        let said = call(&running, compression, MESSAGE_MAX + 1, b"\0").await;
        assert!(said.starts_with("RESOURCE_EXHAUSTED "), "{compression}: {said}");
    }
    let too_large = r#"tapio_otlp_requests_total{protocol="grpc",signal="traces",outcome="too_large"}"#;
    assert_eq!(running.metric(too_large), 2.0);
    assert!(running.events().is_empty());
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_pipeline_is_unavailable_until_there_is_room() {
    let mut running = Running::start(config());
    running.sink.try_send(vec![UnifiedEvent::default(); SINK_EVENTS_MAX as usize]).unwrap();
    let request = spans_protobuf(4);
    let said = call(&running, "none", 1, &request).await;
    assert!(said.starts_with("UNAVAILABLE the agent has a backlog"), "{said}");
    assert_eq!(running.events().len() as u64, SINK_EVENTS_MAX);
    assert_eq!(call(&running, "gzip", 1, &request).await, "OK \n");
    assert_eq!(running.events().len(), 4);
    running.stop().await.unwrap();
}
