//! An owner of everything that was stopped (SIGSTOP), followed by another, and woken: what it still had to say is not used.

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::live::{self, Child};
use common::{Publisher, cgroup, event};
use tapio_correlator::config::CorrelatorConfig;
use tapio_runtime::bus::{Bus, BusError, Headers, Message};
use tapio_runtime::clock::{Clock, SystemClock};
use tapio_runtime::harness::NatsServer;
use tapio_schemas::names::{HEADER_FENCE_EPOCH, STREAM_INSIGHTS, STREAM_SIGNALS, signals_subject};
use tapio_schemas::payload::KernelData;
use tapio_schemas::wire::{ShardMark, SignalBatchView, SignalSection, encode_signals};
use tapio_schemas::{EventKind, Finding, Payload, ProducerId, Signal, SignalKind, Source, UnifiedEvent};

const TEST: &str = "what_a_woken_owner_still_had_to_say_is_not_used";
/// How far behind the newest mark of its shard the invented step is.
const AHEAD_NS: u64 = 1_000_000_000;
/// How often the owner tells it, and how long each telling is waited for.
const TELLINGS: u64 = 10;
const HEARD: Duration = Duration::from_secs(10);

fn config(replica: &str) -> CorrelatorConfig {
    CorrelatorConfig { replica: replica.into(), ..live::config() }
}

/// The main process of `path` crashes.
fn crash(path: &str, id: u128) -> UnifiedEvent {
    let data = KernelData { signal: 11, is_init: true, comm: "program".into(), ..KernelData::default() };
    let payload = Payload::Kernel(Box::new(data));
    let now = SystemClock::new().now_unix_nanos();
    let mut crash = event(EventKind::ProcessExit, Source::Ebpf, &cgroup(path), now, id, payload);
    crash.pid = id as u32;
    crash
}

fn is_about(finding: &Finding, path: &str) -> bool {
    live::tells(finding, "process.crash_signal")
        && finding.entity().is_some_and(|entity| entity.to_string().contains(path))
}

/// All findings, once one is about `path`.
async fn findings_about(bus: &Bus, path: &str) -> Vec<Finding> {
    live::findings_until(bus, |all| all.iter().any(|finding| is_about(finding, path))).await
}

fn section(message: &Message) -> SignalSection {
    SignalBatchView::check(&message.payload).expect("a section").to_section()
}

/// The first section that tells of a crash.
async fn first_crash(bus: &Bus) -> SignalSection {
    let is_crash = |signal: &Signal| signal.kind == SignalKind::CrashSignal;
    let has_one = |message: &Message| section(message).signals.iter().any(is_crash);
    let all = live::read_until(bus, STREAM_SIGNALS, |all| all.iter().any(has_one)).await;
    section(all.iter().find(|message| has_one(message)).expect("told"))
}

/// The newest mark of a shard under an epoch above `epoch`.
async fn newest_mark(bus: &Bus, shard: u16, epoch: u64) -> ShardMark {
    let is_newer = |mark: &ShardMark| mark.shard == shard && mark.epoch > epoch;
    let newest = |all: &[Message]| {
        let marks = all.iter().flat_map(|message| section(message).marks).filter(is_newer);
        marks.max_by_key(|mark| (mark.epoch, mark.at))
    };
    let all = live::read_until(bus, STREAM_SIGNALS, |all| newest(all).is_some()).await;
    newest(&all).expect("a mark")
}

/// Tells that `path` crashed, as an owner of the shard of `like` under `epoch`: with the next step after `mark`.
async fn invent(bus: &Bus, like: &SignalSection, path: &str, mark: ShardMark, by: u64) {
    let mut told = like.clone();
    told.marks = vec![ShardMark { at: mark.at.plus(AHEAD_NS), ..mark }];
    told.signals = vec![Signal {
        onset: mark.at,
        last_seen: mark.at,
        pid: 4242,
        ..Signal::new(SignalKind::CrashSignal, Arc::clone(&cgroup(path)), None, mark.at)
    }];
    let bytes = encode_signals(ProducerId(by), 0, 1, &told).expect("a section");
    bus.publish(&signals_subject("test"), None, Headers::new(), Bytes::from(bytes)).await.expect("stored");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_woken_owner_still_had_to_say_is_not_used() {
    Child::be(config("sleeper")).await;
    let server = NatsServer::start().expect("nats-server");
    let bus = server.bus().await.expect("a bus");
    let sleeper = Child::start(&server.url(), TEST);
    let mut publisher = Publisher::new(bus.clone());
    publisher.publish(&[crash("/first", 1)]).await;
    findings_about(&bus, "/first").await;
    let said = first_crash(&bus).await;
    let before = said.marks[0];
    let published = live::read_until(&bus, STREAM_INSIGHTS, |all| !all.is_empty()).await.remove(0);

    sleeper.signal("-STOP");
    let follower = live::start(&bus, config("follower")).await;
    // Its connection has this when it wakes, besides whatever it had not sent.
    publisher.publish(&[crash("/second", 2)]).await;
    findings_about(&bus, "/second").await;
    let after = newest_mark(&bus, before.shard, before.epoch).await;
    sleeper.signal("-CONT");

    // A section that it had on its way is stored, and a finding is not even that.
    invent(&bus, &said, "/invented", ShardMark { epoch: before.epoch, ..after }, 1).await;
    assert!(published.headers.get(HEADER_FENCE_EPOCH).is_some(), "{:?}", published.headers);
    let stale =
        bus.publish(&published.subject, None, published.headers.clone(), "from the grave".into()).await;
    assert!(matches!(stale, Err(BusError::Fenced { .. })), "{stale:?}");

    publisher.publish(&[crash("/last", 3)]).await;
    let all = findings_about(&bus, "/last").await;
    let about =
        |path| all.iter().filter(|finding| is_about(finding, path)).map(|f| f.id).collect::<BTreeSet<_>>();
    assert_eq!(["/first", "/second", "/last", "/invented"].map(|path| about(path).len()), [1, 1, 1, 0]);
    let mut seen = BTreeSet::new();
    let twice = all.iter().find(|finding| !seen.insert((finding.id, finding.revision)));
    assert_eq!(twice, None);

    // The same under the epoch of the owner would have been believed. The one that woke takes its share of the shards again, and
    // this one may change hands, or go on by more than the step, just when it is told.
    let mut is_believed = false;
    for by in 2..2 + TELLINGS {
        let now = newest_mark(&bus, before.shard, before.epoch).await;
        invent(&bus, &said, "/invented", now, by).await;
        is_believed = tokio::time::timeout(HEARD, findings_about(&bus, "/invented")).await.is_ok();
        if is_believed {
            break;
        }
    }
    assert!(is_believed, "told {TELLINGS} times by the owner");
    follower.drain().await.expect("drains");
}
