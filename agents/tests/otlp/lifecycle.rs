//! Start, drain and limits of the receiver.

use tapio_agents::collectors::otlp::{OtlpConfig, OtlpReceiver};
use tapio_agents::ledger::Ledger;
use tapio_agents::sink::{self, Wake};
use tapio_runtime::clock::SystemClock;
use tapio_runtime::config::HumanDuration;
use tapio_runtime::telemetry::Metrics;
use tokio::io::AsyncWriteExt;

use crate::support::{Running, bounds, config, open_post, post, read_answer, spans_json};

const JSON: (&str, &str) = ("content-type", "application/json");

#[test]
fn a_port_in_use_is_named_with_its_key() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (metrics, clock) = (Metrics::new(), SystemClock::shared());
    let (sink, _intake) = sink::channel(
        "otlp",
        &std::sync::Arc::new(Wake::default()),
        &Ledger::new(&metrics),
        clock.clone(),
        &metrics,
    );
    let config = OtlpConfig { http_listen: address.clone(), ..config() };
    let error = OtlpReceiver::bind(config, bounds(), sink, clock, &metrics).err().unwrap().to_string();
    assert!(error.contains(&address) && error.contains("`otlp.http_listen`"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_in_the_middle_of_a_request_still_takes_it() {
    let mut running = Running::start(config());
    let body = spans_json(6).to_string().into_bytes();
    let mut stream = open_post(running.http, "/v1/traces", &[JSON], body.len()).await;
    stream.write_all(&body[..20]).await.unwrap();
    running.wait_under_way(1).await;
    running.shutdown.trigger();
    stream.write_all(&body[20..]).await.unwrap();
    assert_eq!(read_answer(stream).await.status, 200);
    assert_eq!(running.events().len(), 6);
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_finishes_does_not_hold_up_the_stop() {
    let config = OtlpConfig { drain: HumanDuration::from_millis(50), ..config() };
    let running = Running::start(config);
    let mut stream = open_post(running.http, "/v1/traces", &[JSON], 1000).await;
    stream.write_all(b"{").await.unwrap();
    running.wait_under_way(1).await;
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_take_turns_and_those_without_a_turn_are_told_to_retry() {
    let config = OtlpConfig { requests_max: 1, ..config() };
    let mut running = Running::start(config);
    let body = spans_json(2).to_string().into_bytes();
    let mut first = open_post(running.http, "/v1/traces", &[JSON], body.len()).await;
    first.write_all(&body[..1]).await.unwrap();
    running.wait_under_way(1).await;
    let second = post(running.http, "/v1/traces", &[JSON], &body).await;
    assert_eq!((second.status, second.headers["retry-after"].as_str()), (503, "1"));
    first.write_all(&body[1..]).await.unwrap();
    assert_eq!(read_answer(first).await.status, 200);
    assert_eq!(post(running.http, "/v1/traces", &[JSON], &body).await.status, 200);
    assert_eq!(running.events().len(), 4);
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_wait_for_one_that_ends() {
    let config = OtlpConfig { connections_max: 1, ..config() };
    let mut running = Running::start(config);
    let body = spans_json(1).to_string().into_bytes();
    let mut first = open_post(running.http, "/v1/traces", &[JSON], body.len()).await;
    first.write_all(&body[..1]).await.unwrap();
    running.wait_under_way(1).await;
    let (address, request) = (running.http, body.clone());
    let second = tokio::spawn(async move { post(address, "/v1/traces", &[JSON], &request).await });
    // The first is served while the second waits.
    first.write_all(&body[1..]).await.unwrap();
    assert_eq!(read_answer(first).await.status, 200);
    assert_eq!(second.await.unwrap().status, 200);
    assert_eq!(running.events().len(), 2);
    running.stop().await.unwrap();
}
