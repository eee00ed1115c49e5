//! Both stages over a real nats-server.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use common::live::{Child, forgetful, read_until, start};
use common::{Publisher, cluster_leak, leaking, live};
use tapio_runtime::bus::{ConnectionState, Headers, Message};
use tapio_runtime::clock::{Clock, SystemClock};
use tapio_runtime::harness::NatsServer;
use tapio_schemas::names::{
    HEADER_REASON, STREAM_DEADLETTER, STREAM_INSIGHTS, STREAM_SIGNALS, events_subject, news_subject,
};
use tapio_schemas::wire::SignalBatchView;
use tapio_schemas::{Finding, Signal, SignalKind};

fn signals(messages: &[Message]) -> Vec<Signal> {
    let mut aligned = rkyv::util::AlignedVec::<16>::new();
    messages
        .iter()
        .flat_map(|m| {
            aligned.clear();
            aligned.extend_from_slice(&m.payload);
            SignalBatchView::check(&aligned).expect("a section").to_section().signals
        })
        .collect()
}

fn findings(messages: &[Message]) -> Vec<Finding> {
    messages.iter().map(live::finding).collect()
}

fn has(messages: &[Message], kind: SignalKind) -> bool {
    signals(messages).iter().any(|s| s.kind == kind)
}

fn explains_the_kill(messages: &[Message]) -> bool {
    findings(messages).iter().any(|f| live::tells(f, "memory.oom_kill"))
}

fn tells_the_crash(messages: &[Message]) -> bool {
    findings(messages).iter().any(|f| live::tells(f, "process.crash_signal"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leak_becomes_signals_and_one_finding_on_its_subject() {
    let server = NatsServer::start().expect("nats-server");
    let bus = server.bus().await.expect("a bus");
    let correlator = start(&bus, live::config()).await;
    Publisher::new(bus.clone()).publish(&leaking(SystemClock::new().now_unix_nanos())).await;

    let sections = read_until(&bus, STREAM_SIGNALS, |all| has(all, SignalKind::OomKill)).await;
    assert!(has(&sections, SignalKind::MemoryGrowth));
    let messages = read_until(&bus, STREAM_INSIGHTS, explains_the_kill).await;
    let all = findings(&messages);
    let ids: BTreeSet<_> = all.iter().map(|f| f.id).collect();
    assert_eq!(ids.len(), 1, "one incident: {:?}", all.iter().map(|f| &f.title).collect::<Vec<_>>());
    let last = messages.last().unwrap();
    let finding = all.last().unwrap();
    assert_eq!(last.subject, finding.subject());
    assert_eq!(last.headers.get("Nats-Msg-Id"), Some(finding.message_id().as_str()));
    assert_eq!(last.headers.get("ce-type"), Some("dev.tapio.finding.v1"));
    assert_eq!(finding.entity().unwrap().name, cluster_leak().subject().name);
    correlator.drain().await.expect("drains");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_is_told_at_once_and_then_bindingly_under_the_same_id() {
    let server = NatsServer::start().expect("nats-server");
    let bus = server.bus().await.expect("a bus");
    let mut news = bus.subscribe(&news_subject("test")).await.expect("a subscription");
    let correlator = start(&bus, live::config()).await;
    let crash = common::crash(SystemClock::new().now_unix_nanos());
    Publisher::new(bus.clone()).publish(std::slice::from_ref(&crash)).await;

    let word =
        tokio::time::timeout(live::PATIENCE, news.next()).await.expect("in time").expect("a first word");
    let told = SignalBatchView::check(&word.payload).expect("a section").to_section();
    assert!(told.marks.is_empty(), "it says nothing of how far the shard is");
    let of_kind = |kind| move |s: &&Signal| s.kind == kind;
    let first = told.signals.iter().find(of_kind(SignalKind::CrashSignal)).expect("the crash");
    assert_eq!((first.revision, &first.evidence), (0, &vec![crash.id]));

    let sections = read_until(&bus, STREAM_SIGNALS, |all| has(all, SignalKind::CrashSignal)).await;
    let signals = signals(&sections);
    let binding = signals.iter().find(of_kind(SignalKind::CrashSignal)).expect("the crash");
    assert!(first.id == binding.id && binding.revision > 0);
    correlator.drain().await.expect("drains");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_goes_to_the_dead_letters_with_a_reason_and_the_rest_goes_on() {
    let server = NatsServer::start().expect("nats-server");
    let bus = server.bus().await.expect("a bus");
    let correlator = start(&bus, live::config()).await;
    let subject = events_subject("test", 3);
    for garbage in [&b"not a batch"[..], &[0u8; 400]] {
        bus.publish(&subject, None, Headers::new(), Bytes::copy_from_slice(garbage))
            .await
            .expect("published");
    }
    let dead = read_until(&bus, STREAM_DEADLETTER, |all| all.len() >= 2).await;
    assert_eq!(dead[0].payload, &b"not a batch"[..]);
    let reasons: Vec<_> = dead.iter().map(|m| m.headers.get(HEADER_REASON).unwrap_or("")).collect();
    assert!(reasons[0].contains("truncated") && reasons[1].contains("magic"), "{reasons:?}");
    assert_eq!(dead[0].headers.get("Tapio-Origin-Subject"), Some(subject.as_str()));

    Publisher::new(bus.clone()).publish(&leaking(SystemClock::new().now_unix_nanos())).await;
    read_until(&bus, STREAM_SIGNALS, |all| has(all, SignalKind::OomKill)).await;
    correlator.drain().await.expect("drains");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_server_is_away_it_waits_and_then_goes_on() {
    let mut server = NatsServer::start().expect("nats-server");
    let bus = server.bus().await.expect("a bus");
    let correlator = start(&bus, live::config()).await;
    let all = leaking(SystemClock::new().now_unix_nanos());
    let mut publisher = Publisher::new(bus.clone());
    publisher.publish(&all[..40]).await;
    read_until(&bus, STREAM_INSIGHTS, |all| !all.is_empty()).await;

    server.kill();
    let mut state = bus.watch_state();
    state.wait_for(|state| *state == ConnectionState::Reconnecting).await.expect("it notices");
    // Published while the server is away: the bus holds it until there is one again.
    let rest = tokio::spawn(async move { publisher.publish(&all[40..]).await });
    server.restart().expect("the server comes back");
    rest.await.expect("published");

    let messages = read_until(&bus, STREAM_INSIGHTS, explains_the_kill).await;
    let ids: Vec<String> = findings(&messages).iter().map(Finding::message_id).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "doubled: {ids:?}");
    let restarts: u64 = correlator.status().await.expect("status").iter().map(|c| c.restarts).sum();
    assert_eq!(restarts, 0, "a server that is away is no failure of ours");
    correlator.drain().await.expect("drains");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_time_it_loses_no_finding_and_doubles_none() {
    const NAME: &str = "killed_at_any_time_it_loses_no_finding_and_doubles_none";
    Child::be(live::config()).await;
    let server = NatsServer::start().expect("nats-server");
    let bus = forgetful(&server).await;
    let now = SystemClock::new().now_unix_nanos();
    let all = leaking(now);
    let mut publisher = Publisher::new(bus.clone());
    // Three pieces, and a kill in each.
    let third = all.len().div_ceil(3);
    for (index, piece) in all.chunks(third).enumerate() {
        let child = Child::start(&server.url(), NAME);
        publisher.publish(piece).await;
        match index {
            // In the middle of reading.
            0 => {}
            // After it has said that a leak is there.
            1 => drop(read_until(&bus, STREAM_INSIGHTS, |all| !all.is_empty()).await),
            // After it has said everything.
            _ => drop(read_until(&bus, STREAM_INSIGHTS, explains_the_kill).await),
        }
        drop(child);
    }
    let correlator = start(&bus, live::config()).await;
    read_until(&bus, STREAM_INSIGHTS, explains_the_kill).await;
    Publisher::new(bus.clone()).publish(&[common::crash(SystemClock::new().now_unix_nanos())]).await;
    let messages = read_until(&bus, STREAM_INSIGHTS, tells_the_crash).await;
    correlator.drain().await.expect("drains");
    let mut seen: BTreeMap<(String, u32), usize> = BTreeMap::new();
    for finding in findings(&messages) {
        *seen.entry((finding.id.to_string(), finding.revision)).or_default() += 1;
    }
    assert!(seen.values().all(|count| *count == 1), "doubled: {seen:?}");
    let ids: BTreeSet<_> = seen.keys().map(|(id, _)| id).collect();
    assert_eq!(
        ids.len(),
        2,
        "the leak and the crash: one incident, whatever happened to the process: {seen:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_restart_says_nothing_twice() {
    let server = NatsServer::start().expect("nats-server");
    let bus = forgetful(&server).await;
    let now = SystemClock::new().now_unix_nanos();
    let first = start(&bus, live::config()).await;
    Publisher::new(bus.clone()).publish(&leaking(now)).await;
    let before = read_until(&bus, STREAM_INSIGHTS, explains_the_kill).await.len();
    first.drain().await.expect("drains");

    let second = start(&bus, live::config()).await;
    // Another crash, elsewhere: once its finding is there, everything before it has been decided again.
    Publisher::new(bus.clone()).publish(&[common::crash(SystemClock::new().now_unix_nanos())]).await;
    let messages = read_until(&bus, STREAM_INSIGHTS, tells_the_crash).await;
    second.drain().await.expect("drains");
    let mut ids: Vec<String> = findings(&messages).iter().map(Finding::message_id).collect();
    assert!(ids.len() > before);
    ids.sort();
    let count = ids.len();
    ids.dedup();
    assert_eq!(ids.len(), count, "a revision was published twice");
}
