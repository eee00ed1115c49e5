//! A correlator that is killed and started again, at any moment and as often as one likes, publishes what one that was
//! left alone publishes: the same findings, revisions and words.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use proptest::prelude::*;
use tapio_runtime::bus::{BusError, Headers, Outgoing, TrySubmitError, Untold};
use tapio_runtime::clock::ManualClock;
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::names::SHARD_COUNT;
use tapio_schemas::payload::{KernelData, KubernetesData, MetricData, SpanData, SpanKind, SpanStatus};
use tapio_schemas::wire::{EventBatch, ShardMark, SignalSection, encode_signals};
use tapio_schemas::{
    EntityRef, EventId, EventKind, EventSeverity, Finding, Payload, ProducerId, Source, SpanId, TraceContext,
    TraceId, UnifiedEvent, UnixNanos,
};

use tokio::sync::watch;

use crate::checkpoint::{Fresh, Kept, Memory, Standing};
use crate::config::CorrelatorConfig;
use crate::decider::Decider;
use crate::incident_worker::{IncidentParts, IncidentWorker, Section};
use crate::ledger::Ledger;
use crate::metrics::CorrelatorMetrics;
use crate::model::Model;
use crate::outbox::Outlet;
use crate::own_patterns::Patterns;
use crate::shards::{ShardSet, Watermark};
use crate::slo::{SloConfig, Snapshot};

const SECOND: u64 = 1_000_000_000;
const START: u64 = 1_767_225_600 * SECOND;
const MIB: f64 = 1024.0 * 1024.0;

static MODEL: LazyLock<Arc<Model>> = LazyLock::new(|| Arc::new(Model::builtin().expect("the model loads")));

fn config() -> CorrelatorConfig {
    // Every burn is told, and few failures are one.
    let slo = SloConfig { own_findings: true, ..SloConfig::default() };
    CorrelatorConfig { cluster: "c".into(), slo, ..CorrelatorConfig::default() }
}

fn cgroup(path: &str) -> Arc<EntityRef> {
    let own = EntityRef { cluster: "c".into(), node: "n1".into(), cgroup: path.into(), ..Default::default() };
    Arc::new(own.sealed())
}

fn service(name: &str) -> Arc<EntityRef> {
    let own = EntityRef {
        cluster: "c".into(),
        namespace: "shop".into(),
        service: name.into(),
        ..Default::default()
    };
    Arc::new(own.sealed())
}

fn pod(name: &str) -> Arc<EntityRef> {
    let own = EntityRef {
        cluster: "c".into(),
        namespace: "shop".into(),
        workload_kind: "Deployment".into(),
        workload: name.into(),
        pod: format!("{name}-1").into(),
        container: "main".into(),
        node: "n1".into(),
        ..Default::default()
    };
    Arc::new(own.sealed())
}

fn event(kind: EventKind, entity: &Arc<EntityRef>, at: u64, payload: Payload) -> UnifiedEvent {
    UnifiedEvent {
        id: EventId::derive(UnixNanos(at), format!("{kind} {at} {}", entity.lineage).as_bytes()),
        timestamp: UnixNanos(at),
        observed_at: UnixNanos(at),
        kind,
        source: Source::Replay,
        severity: EventSeverity::Warning,
        entity: Arc::clone(entity),
        payload,
        ..UnifiedEvent::default()
    }
}

fn process(kind: EventKind, entity: &Arc<EntityRef>, at: u64, signal: u32) -> UnifiedEvent {
    let data = KernelData { signal, is_init: true, comm: "main".into(), ..KernelData::default() };
    let mut event = event(kind, entity, at, Payload::Kernel(Box::new(data)));
    event.pid = 77;
    event
}

/// Memory of a container, one MiB a second from 4 MiB to its limit; the kill comes at the end.
fn leak(entity: &Arc<EntityRef>, from_s: u64, kill: bool) -> Vec<UnifiedEvent> {
    let mut events: Vec<UnifiedEvent> = (0..60).map(|i| sample(entity, from_s + i, 4.0 + i as f64)).collect();
    if kill {
        events.push(process(EventKind::OomKill, entity, START + (from_s + 60) * SECOND + SECOND / 3, 0));
    }
    events
}

fn sample(entity: &Arc<EntityRef>, at_s: u64, mebibytes: f64) -> UnifiedEvent {
    let data = MetricData {
        name: "container.memory.usage".into(),
        unit: "By".into(),
        value: mebibytes * MIB,
        limit: 64.0 * MIB,
        ..MetricData::default()
    };
    event(EventKind::CgroupSample, entity, START + at_s * SECOND, Payload::Metric(Box::new(data)))
}

fn request(number: u64, at_s: u64, fails: bool) -> UnifiedEvent {
    let end = START + at_s * SECOND + 10_000_000 * (number % 50);
    let data = SpanData {
        name: "POST /orders".into(),
        kind: SpanKind::Server,
        status: if fails { SpanStatus::Error } else { SpanStatus::Ok },
        http_status: if fails { 500 } else { 200 },
        duration_ns: 20_000_000,
        start: UnixNanos(end - 20_000_000),
        ..SpanData::default()
    };
    let mut event = event(EventKind::Span, &service("api"), end, Payload::Span(Box::new(data)));
    event.trace = Some(Box::new(TraceContext {
        trace_id: TraceId(u128::from(number + 1) << 96 | 1),
        span_id: SpanId(number + 1),
        parent_span_id: SpanId(0),
        flags: 1,
    }));
    event
}

fn image_change(entity: &Arc<EntityRef>, at_s: u64) -> UnifiedEvent {
    let data =
        KubernetesData { old_value: "pay:1".into(), new_value: "pay:2".into(), ..KubernetesData::default() };
    event(EventKind::K8sImageChanged, entity, START + at_s * SECOND, Payload::Kubernetes(Box::new(data)))
}

/// Three quarters of an hour: a change long before the leak that it explains, incidents that end, overlap and
/// come again, requests of many traces that fail for a while.
fn events() -> Vec<UnifiedEvent> {
    let (pay, steady) = (pod("pay"), cgroup("/steady"));
    let mut events: Vec<UnifiedEvent> = (0..540).map(|i| sample(&steady, i * 5, 20.0)).collect();
    events.push(image_change(&pay, 120));
    events.extend(leak(&cgroup("/early"), 200, true));
    for at_s in [400, 430, 900, 1500] {
        events.push(process(EventKind::ProcessExit, &cgroup("/brittle"), START + at_s * SECOND + 77, 11));
    }
    events.extend((0..800).map(|n| request(n, 500 + n / 2, (200..440).contains(&n) && n % 2 == 0)));
    events.extend(leak(&cgroup("/stops"), 1000, false));
    events.extend(leak(&pay, 1800, true));
    events.push(process(EventKind::ProcessExit, &cgroup("/late"), START + 2300 * SECOND, 6));
    events.sort_by_key(|e| (e.timestamp, e.id));
    events
}

/// What stage one says of them, a message per element; a round of watermarks each second.
fn sections() -> Vec<(UnixNanos, SignalSection)> {
    let mut set = ShardSet::new("c", 0..64, &config());
    let mut watermark = Watermark::new(SECOND / 2);
    let mut batches: Vec<EventBatch> = (0..64).map(|s| EventBatch::new(ProducerId(7), 1, s)).collect();
    let mut out = Vec::new();
    let mut told = UnixNanos(0);
    let mut say = |set: &mut ShardSet, at: UnixNanos| {
        for section in set.advance(at) {
            if section.is_heartbeat() {
                if at.since(told) < SECOND {
                    continue;
                }
                told = at;
            }
            out.push((at, section));
        }
    };
    for event in events() {
        let batch = &mut batches[usize::from(event.key().shard())];
        batch.push(event);
        let bytes = batch.finish(UnixNanos(0)).expect("a batch");
        let taken = set.take(&bytes, None, UnixNanos::MAX).expect("taken");
        watermark.observe(taken.newest);
        say(&mut set, watermark.at());
    }
    out
}

type Encoded = Vec<(UnixNanos, Vec<u8>)>;
type Told = (UnixNanos, SignalSection);

static TOLD: LazyLock<Vec<Told>> = LazyLock::new(sections);

static SECTIONS: LazyLock<Encoded> = LazyLock::new(|| {
    let said = TOLD.iter().zip(1..);
    said.map(|((at, s), n)| (*at, encode_signals(ProducerId(1), 0, n, s).expect("encoded"))).collect()
});

/// The key-value bucket and the insight stream: what survives a kill.
#[derive(Default)]
struct Durable {
    published: Vec<Finding>,
    standing: Option<Standing>,
    memory: Memory,
    budgets: Option<Snapshot>,
    /// Findings that were published when the standing was taken.
    acknowledged: usize,
}

impl Durable {
    /// A process from its start to its kill, before message `until`. It keeps a checkpoint every `keeps` messages.
    fn live(&mut self, sections: &Encoded, until: usize, keeps: usize) {
        let kept = Kept {
            standing: self.standing.clone(),
            changes: self.memory.changes.clone(),
            machines: self.memory.machines.clone(),
            budgets: self
                .budgets
                .as_ref()
                .map(|kept| serde_json::from_slice(&kept.json).expect("a snapshot")),
        };
        let begin = self.standing.as_ref().map_or(1, |s| s.mark.sequence as usize);
        let mut ledger = Ledger::new(600 * SECOND);
        self.published.iter().for_each(|finding| ledger.read(finding.clone()));
        // An old owner that talks on speaks of times that are long past; the clock does not go back for it.
        let read = &sections[..until.min(sections.len())];
        let now = read.iter().map(|(at, _)| *at).max().unwrap_or_default();
        let (from, decided) =
            self.standing.as_ref().map_or((UnixNanos(0), UnixNanos(0)), |s| (s.mark.from, s.decided));
        ledger.begin(from, decided, now);
        let mut decider = Decider::new(&config(), Arc::clone(&MODEL), ledger, kept, true);
        for sequence in begin..until {
            let bytes = &sections[sequence - 1].1;
            self.published.extend(decider.apply(sequence as u64, bytes).expect("a section"));
            if sequence % keeps == 0
                && let Some((standing, budgets)) = decider.standing()
            {
                (self.standing, self.memory) = (Some(standing), decider.memory());
                self.budgets = budgets;
                self.acknowledged = self.published.len();
            }
        }
    }

    /// What was sent and not acknowledged when it was killed may be lost: of one tick whatever was repeated on its way, and
    /// all that is later, which had not been sent.
    fn lose(&mut self, share: f64) {
        let sent = self.published.len() - self.acknowledged;
        let first = self.acknowledged + (sent as f64 * share) as usize;
        let Some(tick) = self.published.get(first).map(|finding| finding.emitted_at) else { return };
        let (mut place, acknowledged) = (0.., self.acknowledged);
        self.published.retain(|finding| {
            let at = place.next().unwrap_or_default();
            at < acknowledged || finding.emitted_at < tick || (finding.emitted_at == tick && at > first)
        });
    }

    fn as_text(&self) -> BTreeMap<(String, u32), String> {
        let text = |f: &Finding| serde_json::to_string(f).expect("JSON");
        let all = self.published.iter().map(|f| ((f.id.to_string(), f.revision), text(f)));
        let unique: BTreeMap<_, _> = all.collect();
        assert_eq!(unique.len(), self.published.len(), "a revision was published twice");
        unique
    }
}

static ALONE: LazyLock<BTreeMap<(String, u32), String>> = LazyLock::new(|| {
    let mut durable = Durable::default();
    durable.live(&SECTIONS, SECTIONS.len() + 1, usize::MAX);
    durable.as_text()
});

/// Takes everything, and stores nothing of it.
struct Stuck(Rc<RefCell<Vec<Finding>>>);

impl Outlet for Stuck {
    fn try_submit(&mut self, outgoing: Outgoing) -> Result<(), TrySubmitError> {
        self.0.borrow_mut().push(serde_json::from_slice(&outgoing.payload).expect("a finding"));
        Ok(())
    }

    fn try_end(&mut self) -> Option<Result<(), BusError>> {
        None
    }

    fn stamp(&self, headers: Headers) -> Headers {
        headers
    }

    fn tell(&self, _subject: &str, _payload: Bytes) -> Result<(), Untold> {
        Ok(())
    }
}

/// Who goes on takes the newest finding that is stored for how far all was published.
#[test]
fn no_finding_goes_out_before_those_of_earlier_ticks_are_stored() {
    let decider = Decider::new(&config(), Arc::clone(&MODEL), Ledger::new(0), Kept::default(), false);
    let parts = IncidentParts {
        cluster: "c".to_owned(),
        to_keep: tokio::sync::mpsc::channel(1).0,
        fresh: watch::channel(Fresh::default()).0,
        priors: watch::channel(Arc::default()).1,
        patterns: watch::channel(Patterns::of(Arc::clone(&MODEL))).1,
        questions: tokio::sync::mpsc::channel(1).1,
        clock: ManualClock::new(START).shared(),
        metrics: CorrelatorMetrics::new(&Metrics::new()),
    };
    let sent = Rc::new(RefCell::new(Vec::new()));
    let mut worker = IncidentWorker::new(parts, decider, Stuck(Rc::clone(&sent)));
    for ((_, payload), sequence) in SECTIONS.iter().zip(1..) {
        worker.section(&Section { sequence, payload: Bytes::from(payload.clone()) }).expect("taken");
        worker.turn().expect("sent");
    }
    let ticks: BTreeSet<UnixNanos> = sent.borrow().iter().map(|finding| finding.emitted_at).collect();
    assert_eq!((ticks.len(), worker.is_ready()), (1, false), "{ticks:?}");
}

#[test]
fn the_scene_is_worth_it() {
    let ids: std::collections::BTreeSet<_> = ALONE.keys().map(|(id, _)| id).collect();
    assert!(ids.len() >= 5 && ALONE.len() > 30, "{} findings, {} revisions", ids.len(), ALONE.len());
    let names_the_change = |text: &&String| text.contains("change.image") && text.contains("memory.leak");
    assert!(ALONE.values().any(|text| names_the_change(&text)), "the change is named");
    println!("{} findings, {} revisions, {} sections", ids.len(), ALONE.len(), SECTIONS.len());
}

/// The marks and content of the shards for which `owns` is true, under an epoch; `None` when there is nothing of them.
fn share_of(section: &SignalSection, epoch: u64, owns: impl Fn(u16) -> bool) -> Option<SignalSection> {
    let mut share = section.clone();
    share.marks.retain(|mark| owns(mark.shard));
    share.marks.iter_mut().for_each(|mark| mark.epoch = epoch);
    (!share.marks.is_empty()).then_some(share)
}

/// A handover of the shards that are a multiple of `every`. All places are indices into what one owner says.
#[derive(Debug, Clone)]
struct Handover {
    every: u16,
    /// Where the new owner is first heard, in what the old one says.
    taken: usize,
    /// How far back it begins to read again.
    reads_back: usize,
    /// How long the old owner goes on talking.
    talks_on: usize,
    /// Whose turn it is, again and again.
    turns: Vec<bool>,
}

/// What both owners say, in the order of the stream.
fn handed_over(handover: &Handover) -> Encoded {
    let moves = |shard: u16| shard.is_multiple_of(handover.every);
    let silent = handover.taken + handover.talks_on;
    let old = TOLD.iter().enumerate().filter_map(|(index, (at, section))| {
        let said = share_of(section, 1, |shard| index < silent || !moves(shard));
        // It is cut off in the middle of what it says last.
        let cut = index + 1 == silent && !section.is_heartbeat() && moves(section.marks[0].shard);
        said.map(|said| (*at, SignalSection { partial: cut, ..said }))
    });
    let new = TOLD.iter().skip(handover.taken.saturating_sub(handover.reads_back));
    let new = new.filter_map(|(at, section)| Some((*at, share_of(section, 2, moves)?)));
    // The first thing that a new owner says is that it is there.
    let marks = (0..SHARD_COUNT).filter(|shard| moves(*shard));
    let marks = marks.map(|shard| ShardMark { shard, epoch: 2, at: UnixNanos(START) }).collect();
    let hello = (UnixNanos(START), SignalSection { marks, ..SignalSection::default() });
    let (mut old, mut new) = (old.peekable(), std::iter::once(hello).chain(new).peekable());
    let (mut out, mut number): (Encoded, u64) = (Vec::new(), 0);
    let mut turns = handover.turns.iter().cycle();
    let mut is_heard = false;
    // Each worker numbers what it says.
    let mut numbers = [0u64; 2];
    while old.peek().is_some() || new.peek().is_some() {
        number += 1;
        let is_new = number > handover.taken as u64 && (turns.next() == Some(&true) || old.peek().is_none());
        let (producer, said) = match is_new && new.peek().is_some() {
            true => (ProducerId(2), new.next()),
            false => (ProducerId(1), old.next().or_else(|| new.next())),
        };
        let Some((at, mut section)) = said else { continue };
        if producer == ProducerId(2) {
            is_heard = true;
        } else if is_heard && section.is_heartbeat() {
            // The old owner wakes up, and believes that nothing happened in the minutes that it did not read.
            let mine = section.marks.iter_mut().filter(|mark| moves(mark.shard));
            mine.for_each(|mark| mark.at = mark.at.plus(120 * SECOND));
        }
        let own = &mut numbers[usize::from(producer == ProducerId(2))];
        *own += 1;
        out.push((at, encode_signals(producer, 0, *own, &section).expect("encoded")));
    }
    out
}

prop_compose! {
    fn any_handover()(
        every in prop::sample::select(&[1u16, 2, 7][..]),
        taken in 0.02f64..0.95,
        reads_back in 0usize..600,
        talks_on in 0usize..200,
        turns in prop::collection::vec(prop::bool::weighted(0.7), 1..40),
    ) -> Handover {
        let taken = (taken * TOLD.len() as f64) as usize;
        // A turn of each, so that both come to their end.
        let turns = turns.into_iter().chain([true, false]).collect();
        Handover { every, taken, reads_back, talks_on, turns }
    }
}

/// Few, because each lives through three quarters of an hour; `PROPTEST_CASES` asks for more.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn killed_and_started_again_at_any_moment_it_publishes_what_one_left_alone_does(
        kills in prop::collection::vec((0.0f64..1.0, 0.0f64..=1.0), 1..4),
        keeps in 5usize..400,
    ) {
        let mut kills: Vec<(usize, f64)> =
            kills.iter().map(|(at, lost)| (1 + (at * SECTIONS.len() as f64) as usize, *lost)).collect();
        kills.sort_by_key(|(at, _)| *at);
        let mut durable = Durable::default();
        for (at, lost) in kills {
            durable.live(&SECTIONS, at, keeps);
            durable.lose(lost);
        }
        durable.live(&SECTIONS, SECTIONS.len() + 1, keeps);
        let found = durable.as_text();
        for (key, text) in &found {
            prop_assert_eq!(Some(text), ALONE.get(key), "{:?}", key);
        }
        prop_assert_eq!(found.len(), ALONE.len());
    }

    /// An owner that does not know that it is one no more, and a new one that tells again what was told.
    #[test]
    fn two_owners_of_a_shard_say_what_one_says(
        handover in any_handover(),
        kill in 0.0f64..1.0,
        keeps in 5usize..400,
    ) {
        let sections = handed_over(&handover);
        let mut durable = Durable::default();
        durable.live(&sections, 1 + (kill * sections.len() as f64) as usize, keeps);
        durable.live(&sections, sections.len() + 1, keeps);
        let found = durable.as_text();
        for (key, text) in &found {
            prop_assert_eq!(Some(text), ALONE.get(key), "{:?}", key);
        }
        prop_assert_eq!(found.len(), ALONE.len());
    }
}
