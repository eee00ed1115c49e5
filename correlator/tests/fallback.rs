//! When correlation fails, the events are in the stream all the same, and what stage one makes of them is, too: stage two that
//! cannot tell anything holds up nobody, and tells everything once it can.

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::{Publisher, crash, leaking};
use tapio_correlator::config::CorrelatorConfig;
use tapio_correlator::{Correlator, CorrelatorHandle, CorrelatorParts};
use tapio_runtime::bus::{Bus, Headers, Message, OrderedConfig};
use tapio_runtime::clock::{Clock, SystemClock};
use tapio_runtime::harness::NatsServer;
use tapio_runtime::health::Health;
use tapio_runtime::lease::{LeaseConfig, LeaseEvent, Leases};
use tapio_runtime::shutdown::Shutdown;
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::names::{
    HEADER_REASON, STREAM_DEADLETTER, STREAM_EVENTS, STREAM_INSIGHTS, STREAM_SIGNALS, insights_fence_subject,
    signals_subject,
};
use tapio_schemas::wire::SignalBatchView;
use tapio_schemas::{Finding, SignalKind};

const PATIENCE: Duration = Duration::from_secs(60);

async fn start(bus: &Bus) -> CorrelatorHandle {
    let clock = SystemClock::shared();
    let health = Health::new(Arc::clone(&clock));
    let parts = CorrelatorParts { bus: bus.clone(), clock, health, metrics: Metrics::new() };
    let config = CorrelatorConfig { cluster: "test".into(), ..CorrelatorConfig::default() };
    Correlator::start(config, parts).await.expect("the correlator starts")
}

async fn read_until(bus: &Bus, stream: &str, enough: impl Fn(&[Message]) -> bool) -> Vec<Message> {
    let mut consumer = bus.ordered_consumer(OrderedConfig::new(stream)).await.expect("a consumer");
    let mut all = Vec::new();
    let reading = async {
        while !enough(&all) {
            all.extend(consumer.next_batch(64, Duration::from_millis(100)).await.expect("a batch"));
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.unwrap_or_else(|_| panic!("{stream}: not enough in time"));
    all
}

/// True when stage one has said this; what is no section of it is passed over.
fn is_said(messages: &[Message], kind: SignalKind) -> bool {
    let mut aligned = rkyv::util::AlignedVec::<16>::new();
    messages.iter().any(|message| {
        aligned.clear();
        aligned.extend_from_slice(&message.payload);
        let section = SignalBatchView::check(&aligned).map(|view| view.to_section());
        section.is_ok_and(|section| section.signals.iter().any(|signal| signal.kind == kind))
    })
}

fn findings(messages: &[Message]) -> Vec<Finding> {
    messages.iter().map(|m| serde_json::from_slice(&m.payload).expect("a finding in JSON")).collect()
}

fn tells(messages: &[Message], signal: &str) -> bool {
    findings(messages).iter().any(|f| f.chain.iter().any(|link| link.signal == signal))
}

/// How often a stage was built anew, and why last.
async fn restarts(correlator: &CorrelatorHandle, stage: &str) -> (u64, Option<String>) {
    let all = correlator.status().await.expect("the supervisor answers");
    let stage = all.into_iter().find(|component| component.name == stage).expect("a stage");
    (stage.restarts, stage.last_error)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stage_two_that_may_not_tell_anything_holds_up_nobody_and_recovers() {
    let server = NatsServer::start().expect("nats-server");
    let bus = server.bus().await.expect("a bus");
    let correlator = start(&bus).await;
    let mut publisher = Publisher::new(bus.clone());
    publisher.publish(&leaking(SystemClock::new().now_unix_nanos())).await;
    read_until(&bus, STREAM_INSIGHTS, |all| tells(all, "memory.oom_kill")).await;

    // Somebody with a newer lease takes the fence: from now on no finding of this stage two is stored.
    let config = LeaseConfig::new("thieves", "thief", vec!["fence".to_owned()]);
    let clock = SystemClock::shared();
    let joined = Leases::join(&bus, config, clock, &Metrics::new(), Shutdown::new()).await;
    let (_leases, mut events) = joined.expect("joined");
    let Some(LeaseEvent::Acquired { lease, .. }) = events.next().await else { panic!("no lease") };
    bus.fence(&insights_fence_subject("test"), &lease).await.expect("the fence is taken");
    publisher.publish(&[crash(SystemClock::new().now_unix_nanos())]).await;

    // The event is stored, stage one has said what it is, and stage two has failed over it and told it in the end.
    read_until(&bus, STREAM_SIGNALS, |all| is_said(all, SignalKind::CrashSignal)).await;
    let told = read_until(&bus, STREAM_INSIGHTS, |all| tells(all, "process.crash_signal")).await;
    assert_eq!(read_until(&bus, STREAM_EVENTS, |all| all.len() >= 63).await.len(), 63);
    let (failed, why) = restarts(&correlator, "correlator.incidents").await;
    assert!(failed >= 1 && why.is_some(), "{failed} {why:?}");
    assert_eq!(restarts(&correlator, "correlator.shards").await, (0, None));
    let mut seen = BTreeSet::new();
    let twice = findings(&told).into_iter().find(|finding| !seen.insert((finding.id, finding.revision)));
    assert_eq!(twice, None);
    correlator.drain().await.expect("drains");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_section_that_cannot_be_read_goes_to_the_dead_letters_and_the_rest_is_decided() {
    let server = NatsServer::start().expect("nats-server");
    let bus = server.bus().await.expect("a bus");
    let correlator = start(&bus).await;
    let garbage = Bytes::from_static(b"not a section");
    bus.publish(&signals_subject("test"), None, Headers::new(), garbage.clone()).await.expect("published");
    let dead = read_until(&bus, STREAM_DEADLETTER, |all| !all.is_empty()).await;
    assert_eq!(dead[0].payload, garbage);
    assert_eq!(dead[0].headers.get("Tapio-Origin-Subject"), Some(signals_subject("test").as_str()));
    assert!(dead[0].headers.get(HEADER_REASON).is_some_and(|reason| reason.contains("truncated")));
    Publisher::new(bus.clone()).publish(&[crash(SystemClock::new().now_unix_nanos())]).await;
    read_until(&bus, STREAM_INSIGHTS, |all| tells(all, "process.crash_signal")).await;
    for stage in ["correlator.shards", "correlator.incidents"] {
        assert_eq!(restarts(&correlator, stage).await, (0, None), "{stage}");
    }
    correlator.drain().await.expect("drains");
}
