//! Two owners of one thing, of which the older does not know that it is over.

use std::time::Duration;

use bytes::Bytes;
use tapio_runtime::bus::{Bus, BusError, Fence, Headers, Message, OrderedConfig, Outgoing};
use tapio_runtime::clock::SystemClock;
use tapio_runtime::lease::{Lease, LeaseConfig, LeaseEvent, LeaseEvents, Leases};
use tapio_runtime::shutdown::Shutdown;
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::names;

use crate::{in_time, server_and_bus};

const CLUSTER: &str = "test";
const FINDING: &str = "tapio.v1.insights.critical.test.shop.Deployment.api";

pub(crate) async fn own(bus: &Bus, replica: &str) -> (Leases, LeaseEvents, Lease) {
    let config = LeaseConfig {
        ttl: Duration::from_millis(600),
        renew: Duration::from_millis(150),
        ..LeaseConfig::new(names::lease_group("correlator", CLUSTER), replica, vec!["incidents".into()])
    };
    let joined = Leases::join(bus, config, SystemClock::shared(), &Metrics::new(), Shutdown::new()).await;
    let (leases, mut events) = joined.unwrap();
    match in_time(events.next()).await {
        Some(LeaseEvent::Acquired { lease, .. }) => (leases, events, lease),
        other => panic!("{other:?}"),
    }
}

fn outgoing(fence: &Fence, id: String) -> Outgoing {
    Outgoing {
        subject: FINDING.into(),
        payload: Bytes::from(id.clone()),
        msg_id: Some(id),
        headers: fence.stamp(Headers::new().with("X-Kept", "yes")),
    }
}

async fn publish(bus: &Bus, fence: &Fence, id: &str) -> Result<u64, BusError> {
    let Outgoing { subject, msg_id, headers, payload } = outgoing(fence, id.to_owned());
    let ack = in_time(bus.publish(&subject, msg_id.as_deref(), headers, payload)).await?;
    Ok(ack.sequence)
}

pub(crate) async fn insights(bus: &Bus, count: usize) -> Vec<Message> {
    let mut reader = bus.ordered_consumer(OrderedConfig::new(names::STREAM_INSIGHTS)).await.unwrap();
    let mut messages = Vec::new();
    while messages.len() < count {
        messages.push(in_time(reader.next()).await.unwrap());
    }
    messages
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_an_earlier_owner_is_stored_after_the_fence_was_taken() {
    let (_server, bus) = server_and_bus().await;
    let subject = names::insights_fence_subject(CLUSTER);
    let (_, first_events, first_lease) = own(&bus, "first").await;
    let first = bus.fence(&subject, &first_lease).await.unwrap();
    publish(&bus, &first, "first-1").await.unwrap();
    // As a crash for the group, while its publisher goes on.
    drop(first_events);
    let (_leases, _events, second_lease) = own(&bus, "second").await;
    let (mut publisher, mut reports) = bus.publisher(32, Shutdown::new());
    let stale = first.clone();
    let flood = tokio::spawn(async move {
        for number in 2.. {
            if publisher.submit(outgoing(&stale, format!("first-{number}"))).await.is_err() {
                break;
            }
        }
    });
    for _ in 0..100 {
        in_time(reports.next()).await.unwrap().result.unwrap();
    }
    let second = bus.fence(&subject, &second_lease).await.unwrap();
    assert!(second.epoch() > first.epoch());
    let taken = publish(&bus, &second, "second-1").await.unwrap();
    let mut refused = 0;
    while refused < 100 {
        match in_time(reports.next()).await.unwrap().result {
            Ok(ack) => assert!(ack.sequence < taken, "stored after the fence: {ack:?}"),
            Err(BusError::Fenced { epoch, .. }) => {
                assert_eq!(epoch, first.epoch());
                refused += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    drop(reports);
    flood.abort();
    publish(&bus, &second, "second-2").await.unwrap();
    // The older cannot take it back either.
    let again = bus.fence(&subject, &first_lease).await;
    assert!(matches!(again, Err(BusError::Fenced { .. })), "{again:?}");
    let last = bus.stream_state(names::STREAM_INSIGHTS).await.unwrap();
    let stored = insights(&bus, usize::try_from(last.messages).unwrap() - 1).await;
    let mut seen_second = false;
    for message in &stored {
        assert_eq!(message.subject, FINDING, "who reads findings sees no fences");
        assert_eq!(message.headers.get("X-Kept"), Some("yes"));
        seen_second |= message.payload.starts_with(b"second");
        assert!(!seen_second || message.payload.starts_with(b"second"), "{message:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_owner_may_post_its_fence_again_and_again() {
    let (mut server, bus) = server_and_bus().await;
    let subject = names::insights_fence_subject(CLUSTER);
    let (_leases, _events, lease) = own(&bus, "one").await;
    let old = bus.fence(&subject, &lease).await.unwrap();
    let new = bus.fence(&subject, &lease).await.unwrap();
    // Stamped with the sequence of the first posting, of the same epoch: tried again with the newer one.
    publish(&bus, &old, "a").await.unwrap();
    publish(&bus, &new, "b").await.unwrap();
    server.kill();
    server.restart().unwrap();
    publish(&bus, &new, "c").await.unwrap();
    assert_eq!(publish(&bus, &new, "a").await.unwrap(), 3, "de-duplicated as ever");
    let payloads: Vec<_> = insights(&bus, 3).await.iter().map(|message| message.payload.clone()).collect();
    assert_eq!(payloads, ["a", "b", "c"]);
    let state = bus.stream_state(names::STREAM_INSIGHTS).await.unwrap();
    assert_eq!(state.messages, 4, "one fence message is left");
}

#[tokio::test]
async fn a_fence_needs_a_lease_that_is_valid() {
    let (_server, bus) = server_and_bus().await;
    let (_, events, lease) = own(&bus, "one").await;
    drop(events);
    in_time(async {
        while lease.is_valid() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let fence = bus.fence(&names::insights_fence_subject(CLUSTER), &lease).await;
    assert!(matches!(fence, Err(BusError::Fenced { .. })), "{fence:?}");
    assert_eq!(bus.stream_state(names::STREAM_INSIGHTS).await.unwrap().messages, 0);
}

#[tokio::test]
async fn streams_of_an_earlier_version_learn_fences() {
    let server = tapio_runtime::harness::NatsServer::start().unwrap_or_else(|error| panic!("{error}"));
    let jetstream = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let old = async_nats::jetstream::stream::Config {
        name: names::STREAM_INSIGHTS.to_owned(),
        subjects: vec![names::SUBJECTS_INSIGHTS.to_owned()],
        ..Default::default()
    };
    jetstream.create_stream(old).await.unwrap();
    jetstream.publish(FINDING, "kept".into()).await.unwrap().await.unwrap();
    let bus = server.bus().await.unwrap();
    let (_leases, _events, lease) = own(&bus, "one").await;
    let fence = bus.fence(&names::insights_fence_subject(CLUSTER), &lease).await.unwrap();
    publish(&bus, &fence, "new").await.unwrap();
    let payloads: Vec<_> = insights(&bus, 2).await.iter().map(|message| message.payload.clone()).collect();
    assert_eq!(payloads, ["kept", "new"]);
}
