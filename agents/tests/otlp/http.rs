//! OTLP over HTTP: answers and errors of the protocol.

use prost::Message;
use serde_json::json;
use tapio_agents::sink::SINK_EVENTS_MAX;
use tapio_schemas::event::UnifiedEvent;

use crate::support::{Answer, MESSAGE_MAX, Running, config, gzip, post, spans_json, spans_protobuf};

const JSON: (&str, &str) = ("content-type", "application/json; charset=utf-8");
const PROTOBUF: (&str, &str) = ("content-type", "application/x-protobuf");
const GZIP: (&str, &str) = ("content-encoding", "gzip");

/// `google.rpc.Status`
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

fn rpc_status(answer: &Answer) -> RpcStatus {
    assert_eq!(answer.headers["content-type"], "application/x-protobuf");
    RpcStatus::decode(answer.body.as_slice()).unwrap()
}

#[tokio::test]
async fn json_and_protobuf_plain_and_compressed_are_taken() {
    let mut running = Running::start(config());
    let json = spans_json(3).to_string().into_bytes();
    let protobuf = spans_protobuf(3);
    let requests: [(Vec<_>, Vec<u8>); 4] = [
        (vec![JSON], json.clone()),
        (vec![JSON, GZIP], gzip(&json)),
        (vec![PROTOBUF], protobuf.clone()),
        (vec![PROTOBUF, GZIP], gzip(&protobuf)),
    ];
    for (headers, body) in &requests {
        let answer = post(running.http, "/v1/traces", headers, body).await;
        assert_eq!(answer.status, 200, "{headers:?}");
        assert_eq!(answer.headers["content-type"], headers[0].1.split(';').next().unwrap());
        let empty: &[u8] = if headers[0] == JSON { b"{}" } else { b"" };
        assert_eq!(answer.body, empty, "a full success says nothing");
        assert_eq!(running.events().len(), 3);
    }
    for signal in ["metrics", "logs"] {
        let answer = post(running.http, &format!("/v1/{signal}"), &[JSON], b"{}").await;
        assert_eq!((answer.status, answer.body), (200, b"{}".to_vec()));
    }
    assert!(running.events().is_empty());
    running.stop().await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_taken_is_a_partial_success() {
    let mut running = Running::start(config());
    let mut request = spans_json(3);
    request["resourceSpans"][0]["scopeSpans"][0]["spans"][1]["traceId"] = json!("0".repeat(32));
    let answer = post(running.http, "/v1/traces", &[JSON], request.to_string().as_bytes()).await;
    assert_eq!(answer.status, 200);
    let partial = answer.json()["partialSuccess"].clone();
    assert_eq!(partial["rejectedSpans"], "1");
    assert_eq!(partial["errorMessage"], "1 rejected: trace id is not 16 bytes or is zero");
    assert_eq!(running.events().len(), 2);
    assert_eq!(running.metric(r#"tapio_otlp_items_total{signal="traces",outcome="trace_id"}"#), 1.0);
    assert_eq!(running.metric(r#"tapio_otlp_items_total{signal="traces",outcome="accepted"}"#), 2.0);

    let old = json!({"resourceLogs": [{"scopeLogs": [{"logRecords": [{"timeUnixNano": "1000"}]}]}]});
    let answer = post(running.http, "/v1/logs", &[JSON], old.to_string().as_bytes()).await;
    assert_eq!(answer.json()["partialSuccess"]["rejectedLogRecords"], "1");
    assert!(running.events().is_empty());
    running.stop().await.unwrap();
}

#[tokio::test]
async fn malformed_requests_get_a_status_in_their_own_encoding() {
    let mut running = Running::start(config());
    let http = running.http;
    let answer = post(http, "/v1/traces", &[JSON], b"{\"resourceSpans\":").await;
    assert_eq!((answer.status, answer.json()["code"].as_i64()), (400, Some(3)));
    assert!(answer.json()["message"].as_str().unwrap().starts_with("not an OTLP/JSON traces request: "));

    let answer = post(http, "/v1/traces", &[PROTOBUF], b"\x0a\xff\xffgarbage").await;
    assert_eq!((answer.status, rpc_status(&answer).code), (400, 3));

    let answer = post(http, "/v1/metrics", &[PROTOBUF, GZIP], b"not gzip").await;
    assert_eq!((answer.status, rpc_status(&answer).code), (400, 3));

    let answer = post(http, "/v1/logs", &[JSON, ("content-encoding", "zstd")], b"{}").await;
    assert_eq!(answer.status, 415);
    let answer = post(http, "/v1/logs", &[("content-type", "text/plain")], b"hello").await;
    assert_eq!((answer.status, answer.json()["code"].as_i64()), (415, Some(3)));
    let answer = post(http, "/v1/profiles", &[JSON], b"{}").await;
    assert_eq!(answer.status, 404);
    assert!(running.events().is_empty());
    running.stop().await.unwrap();
}

#[tokio::test]
async fn size_is_limited_compressed_and_decompressed() {
    let mut running = Running::start(config());
    let large = vec![b' '; MESSAGE_MAX + 1];
    for (headers, body) in [(vec![JSON], large.clone()), (vec![JSON, GZIP], gzip(&large))] {
        let answer = post(running.http, "/v1/traces", &headers, &body).await;
        assert_eq!((answer.status, answer.json()["code"].as_i64()), (413, Some(8)), "{headers:?}");
    }
    // The largest that is allowed is allowed.
    let mut fits = b"{}".to_vec();
    fits.resize(MESSAGE_MAX, b' ');
    assert_eq!(post(running.http, "/v1/traces", &[JSON], &fits).await.status, 200);
    assert!(running.events().is_empty());
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_full_pipeline_takes_nothing_and_says_when_to_come_back() {
    let mut running = Running::start(config());
    running.sink.try_send(vec![UnifiedEvent::default(); SINK_EVENTS_MAX as usize]).unwrap();
    let request = spans_protobuf(5);
    let answer = post(running.http, "/v1/traces", &[PROTOBUF], &request).await;
    assert_eq!((answer.status, answer.headers["retry-after"].as_str()), (503, "1"));
    assert_eq!(rpc_status(&answer).code, 14);
    assert_eq!(running.events().len() as u64, SINK_EVENTS_MAX);
    assert_eq!(post(running.http, "/v1/traces", &[PROTOBUF], &request).await.status, 200);
    assert_eq!(running.events().len(), 5);
    running.stop().await.unwrap();
}
