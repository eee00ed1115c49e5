//! From the SDK of another language into the event stream: the node agent with a real nats-server.

use serde_json::Value;
use tapio_runtime::harness::NatsServer;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::kind::EventKind;

use crate::agent::{Stream, bare, drain, parts};
use crate::sdk::check_all;
use crate::support::python;

#[tokio::test(flavor = "multi_thread")]
async fn what_the_sdk_exports_is_in_the_stream_in_the_shard_of_its_trace() {
    let nats = NatsServer::start().expect("nats-server");
    let mut config = bare("otlp-e2e");
    config.otlp.enabled = true;
    config.otlp.grpc_listen = "127.0.0.1:0".into();
    config.otlp.http_listen = "127.0.0.1:0".into();
    let parts = parts(&nats).await;
    let bus = parts.bus.clone();
    let agent = tapio_agents::node::NodeAgent::start(config, parts).await.expect("the agent starts");
    let endpoint = agent.collectors().otlp_grpc().expect("an address").to_string();
    let said: Value =
        serde_json::from_str(&python("otlp_export.py", &["grpc", &endpoint, "gzip"], b"").await).unwrap();
    let ledger = drain(agent).await;

    let batches = Stream::open(&bus, "otlp-e2e").await.rest().await;
    for batch in &batches {
        assert!(batch.events.iter().all(|event| event.key().shard() == batch.header.shard));
        assert!(batch.subject.ends_with(&format!(".{}", batch.header.shard)), "{}", batch.subject);
    }
    let events: Vec<UnifiedEvent> = batches.into_iter().flat_map(|batch| batch.events).collect();
    check_all(&said, &events);
    assert_eq!(ledger.published, events.len() as u64);
    // All events of the trace with the failure are together: spans and the log.
    let log = events.iter().find(|event| event.kind == EventKind::Log).unwrap();
    let same = events.iter().filter(|event| event.key() == log.key()).count();
    assert_eq!(same, 3);
}
