use std::time::Duration;

use bytes::Bytes;
use tapio_runtime::bus::{BusError, Query, QueryError};

use crate::{in_time, server_and_bus};

const SUBJECT: &str = "tapio.v1.query.findings.get";

#[tokio::test]
async fn questions_get_answers_errors_and_no_one() {
    let (_server, bus) = server_and_bus().await;
    let ask = |text: &'static str| {
        bus.request(SUBJECT, Bytes::from_static(text.as_bytes()), Duration::from_secs(10))
    };
    assert!(matches!(ask("early").await, Err(BusError::NoResponders { .. })));
    let service = bus.service("tapio", "0.1.0", "answers").await.unwrap();
    let answer = |query: Query| async move {
        match &query.payload[..] {
            b"missing" => Err(QueryError { code: 404, message: "no such\nfinding".into() }),
            payload => Ok(Bytes::from([b"you said ", payload].concat())),
        }
    };
    service.endpoint(SUBJECT, answer).await.unwrap();
    bus.flush().await.unwrap();
    assert_eq!(&ask("hello").await.unwrap()[..], b"you said hello");
    let error = ask("missing").await.unwrap_err();
    let BusError::Service { code, message } = &error else { panic!("{error}") };
    assert_eq!((*code, message.as_str()), (404, "no such finding"));
    // It is a real micro service: the discovery protocol finds it.
    let info = bus.request("$SRV.INFO.tapio", Bytes::new(), Duration::from_secs(10)).await.unwrap();
    assert!(String::from_utf8_lossy(&info).contains(SUBJECT));
    service.stop().await;
    let gone = async {
        while !matches!(ask("late").await, Err(BusError::NoResponders { .. })) {
            tokio::task::yield_now().await;
        }
    };
    in_time(gone).await;
}

#[tokio::test]
async fn a_subscription_sees_what_is_published_into_a_stream() {
    let (_server, bus) = server_and_bus().await;
    let mut live = bus.subscribe("tapio.v1.signals.>").await.unwrap();
    let headers = tapio_runtime::bus::Headers::new().with("Kind", "test");
    in_time(bus.publish("tapio.v1.signals.c", None, headers, Bytes::from_static(b"s"))).await.unwrap();
    let message = in_time(live.next()).await.unwrap();
    assert_eq!((message.subject.as_str(), &message.payload[..]), ("tapio.v1.signals.c", &b"s"[..]));
    assert_eq!(message.headers.get("Kind"), Some("test"));
}
