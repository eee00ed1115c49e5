//! A batch that takes longer than it may holds up no other shard, says in the end what it would have said, and is counted at
//! each moment.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tapio_runtime::bus::{BusError, Headers, Outgoing, TrySubmitError, Untold};
use tapio_runtime::clock::Clock;
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::names::HEADER_REASON;
use tapio_schemas::payload::KernelData;
use tapio_schemas::wire::{EventBatch, SignalBatchView, SignalSection};
use tapio_schemas::{EntityRef, EventId, EventKind, Payload, ProducerId, UnifiedEvent, UnixNanos};
use tokio::sync::mpsc;

use super::worker::{Answer, Shared, Work, Worker, WorkerParts};
use crate::config::CorrelatorConfig;
use crate::metrics::CorrelatorMetrics;
use crate::outbox::Outlet;
use crate::shards::AccountLine;

pub(super) const SECOND: u64 = 1_000_000_000;
pub(super) const START: u64 = 1_700_000_000 * SECOND;
/// Events of the batch that takes long.
const MANY: u64 = 5000;

/// Each look at the clock takes this many milliseconds: a slow machine. The time of day stands still.
#[derive(Default)]
pub(super) struct SlowClock {
    look_ms: AtomicU64,
    elapsed_ms: AtomicU64,
}

impl Clock for SlowClock {
    fn now_unix_nanos(&self) -> u64 {
        START + 60 * SECOND
    }

    fn monotonic(&self) -> Duration {
        let look = self.look_ms.load(Ordering::Relaxed);
        Duration::from_millis(self.elapsed_ms.fetch_add(look, Ordering::Relaxed) + look)
    }

    // check: allow sleep, the clock has it and nobody here asks for it
    fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}

/// Stores everything at once.
#[derive(Clone, Default)]
pub(super) struct Stored {
    pub(super) messages: Arc<Mutex<Vec<Outgoing>>>,
    open: usize,
}

impl Outlet for Stored {
    fn try_submit(&mut self, outgoing: Outgoing) -> Result<(), TrySubmitError> {
        self.messages.lock().expect("messages").push(outgoing);
        self.open += 1;
        Ok(())
    }

    fn try_end(&mut self) -> Option<Result<(), BusError>> {
        self.open = self.open.checked_sub(1)?;
        Some(Ok(()))
    }

    fn stamp(&self, headers: Headers) -> Headers {
        headers
    }

    fn tell(&self, _subject: &str, _payload: Bytes) -> Result<(), Untold> {
        Ok(())
    }
}

pub(super) type Said = BTreeMap<u16, Vec<SignalSection>>;

pub(super) struct Rig {
    pub(super) worker: Worker<Stored>,
    pub(super) stored: Stored,
    clock: Arc<SlowClock>,
    pub(super) answers: mpsc::Receiver<Answer>,
    pub(super) registry: Metrics,
    read: u64,
}

impl Rig {
    /// One worker that owns these shards; a look at its clock takes so long.
    pub(super) fn new(config: CorrelatorConfig, look: Duration, shards: &[u16]) -> Self {
        let clock = Arc::new(SlowClock::default());
        clock.look_ms.store(look.as_millis() as u64, Ordering::Relaxed);
        let (sender, answers) = mpsc::channel(256);
        let registry = Metrics::new();
        let parts = WorkerParts {
            index: 0,
            producer: ProducerId(1),
            config,
            shared: Arc::new(Shared::new(1)),
            answers: sender,
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            metrics: CorrelatorMetrics::new(&registry),
        };
        let stored = Stored::default();
        let mut worker = Worker::new(parts, stored.clone());
        for shard in shards {
            worker.work(Work::Own { shard: *shard, epoch: 1, from: None }).expect("owned");
        }
        Self { worker, stored, clock, answers, registry, read: 0 }
    }

    /// So long is passed by nothing but the clock.
    pub(super) fn pass(&self, time: Duration) {
        self.clock.elapsed_ms.fetch_add(time.as_millis() as u64, Ordering::Relaxed);
    }

    fn batch(&mut self, shard: u16, payload: &Bytes) {
        self.read += 1;
        let work = Work::Batch { shard, sequence: self.read, payload: payload.clone() };
        self.worker.work(work).expect("a batch");
        self.worker.turn().expect("a turn");
    }

    /// Turns until nothing is put aside; how many it took.
    fn work_off(&mut self) -> usize {
        (0..10_000).find(|_| self.worker.deferred.is_empty() || self.worker.turn().is_err()).expect("an end")
    }

    pub(super) fn quiet(&mut self, shards: &[u16], now: u64) {
        let shards = shards.iter().map(|shard| 1 << shard).sum();
        self.worker.work(Work::CaughtUp { shards, now: UnixNanos(now) }).expect("the clock is followed");
        self.worker.turn().expect("a turn");
    }

    /// What was said of each shard, in order; marks alone are left out.
    pub(super) fn said(&self) -> Said {
        let mut said = Said::new();
        for message in self.stored.messages.lock().expect("messages").iter() {
            let mut aligned = crate::aligned::Aligned::default();
            let Ok(view) = SignalBatchView::check(aligned.of(&message.payload)) else { continue };
            let section = view.to_section();
            if !section.is_heartbeat() {
                said.entry(section.marks[0].shard).or_default().push(section);
            }
        }
        said
    }

    /// Event time up to which anything was said to be known of a shard.
    pub(super) fn told(&self, shard: u16) -> UnixNanos {
        let messages = self.stored.messages.lock().expect("messages");
        let marks = messages.iter().flat_map(|message| {
            let mut aligned = crate::aligned::Aligned::default();
            let view = SignalBatchView::check(aligned.of(&message.payload)).ok();
            view.map(|view| view.to_section().marks).unwrap_or_default()
        });
        marks.filter(|mark| mark.shard == shard).map(|mark| mark.at).max().unwrap_or_default()
    }

    fn accounts(&self) -> Vec<(u16, AccountLine)> {
        let lines: Vec<_> = self.worker.shards.accounts().collect();
        for (shard, line) in &lines {
            let account = &line.account;
            let known = account.processed + account.dropped.total() + line.missing;
            assert_eq!(line.next - account.from, known, "shard {shard}: {line:?}");
        }
        lines
    }
}

/// Compared as text: what was not measured is not a number, which equals nothing.
fn assert_same(calm: &Said, slowly: &Said) {
    assert!(calm.keys().eq(slowly.keys()));
    for (shard, sections) in calm {
        assert_eq!(sections.len(), slowly[shard].len(), "sections of shard {shard}");
        for (calm, slow) in sections.iter().zip(&slowly[shard]) {
            assert_eq!(format!("{calm:?}"), format!("{slow:?}"), "of shard {shard}");
        }
    }
}

pub(super) fn event(path: &str, at: u64, id: u128) -> UnifiedEvent {
    let entity =
        EntityRef { cluster: "local".into(), node: "n1".into(), cgroup: path.into(), ..Default::default() };
    let data = KernelData { signal: 11, is_init: true, comm: "main".into(), ..KernelData::default() };
    UnifiedEvent {
        id: EventId(id),
        timestamp: UnixNanos(at),
        observed_at: UnixNanos(at),
        kind: EventKind::ProcessExit,
        entity: Arc::new(entity.sealed()),
        payload: Payload::Kernel(Box::new(data)),
        pid: 7,
        ..UnifiedEvent::default()
    }
}

/// Batches of one producer about one program, in which so many events come one after the other in 20 s, from `from` on.
pub(super) fn batches(path: &str, sizes: &[u64], from: u64) -> (u16, Vec<Bytes>) {
    let shard = event(path, START, 1).key().shard();
    let mut batch = EventBatch::new(ProducerId(u64::from(shard) + 100), 1, shard);
    let step = 20 * SECOND / sizes.iter().sum::<u64>();
    let mut number = 0;
    let mut finish = |size: &u64| {
        for _ in 0..*size {
            batch.push(event(path, from + number * step, u128::from(from + number)));
            number += 1;
        }
        Bytes::from(batch.finish(UnixNanos(0)).expect("a batch"))
    };
    (shard, sizes.iter().map(&mut finish).collect())
}

fn config() -> CorrelatorConfig {
    CorrelatorConfig::default()
}

const SLOW: Duration = Duration::from_secs(1);

#[test]
fn a_slow_batch_holds_up_no_other_shard_and_says_the_same() {
    let (slow, long) = batches("/slow", &[MANY, 100, 3000], START);
    let (other, short) = batches("/other", &[50, 50], START);
    assert_ne!(slow, other);
    let play = |look: Duration| {
        let mut rig = Rig::new(config(), look, &[slow, other]);
        rig.batch(slow, &long[0]);
        let was_put_aside = rig.worker.deferred.has(slow);
        let told_amid = rig.told(slow);
        let read_amid: u64 = rig.accounts().iter().map(|(_, line)| line.next).sum();
        rig.batch(other, &short[0]);
        let others = rig.said().contains_key(&other);
        rig.batch(slow, &long[1]);
        rig.batch(slow, &long[2]);
        rig.batch(other, &short[1]);
        // It waits, so it does not follow the clock.
        rig.quiet(&[slow, other], START + 25 * SECOND);
        rig.work_off();
        rig.quiet(&[slow, other], START + 59 * SECOND);
        rig.work_off();
        let lines = rig.accounts();
        let processed: u64 = lines.iter().map(|(_, line)| line.account.processed).sum();
        assert_eq!(processed, MANY + 3100 + 100);
        (rig.said(), (was_put_aside, others, told_amid, read_amid), rig.worker.parts.metrics.deferred.get())
    };
    let (calm, (aside, _, told, read), deferred) = play(Duration::ZERO);
    assert_eq!((aside, read, deferred), (false, MANY, 0));
    assert!(told > UnixNanos(START), "{told:?}");
    let (slowly, (aside, others, told, read), deferred) = play(SLOW);
    assert!(aside && others && deferred >= 3, "{aside} {others} {deferred}");
    // Five seconds of one per chunk.
    assert!((512 * 4..512 * 8).contains(&read), "{read} events before the time was over");
    assert_eq!(told, UnixNanos(0), "the watermark waits for what was put aside");
    assert!(calm[&slow].len() > 10, "{} sections", calm[&slow].len());
    assert_same(&calm, &slowly);
}

#[test]
fn steps_that_take_too_long_go_on_where_they_were() {
    // Taken in fast, judged slowly: the clock is slow only from then on.
    let (shard, long) = batches("/slow", &[MANY], START);
    let play = |look: Duration| {
        let mut rig = Rig::new(config(), Duration::ZERO, &[shard]);
        rig.worker.parts.config.lateness = tapio_runtime::config::HumanDuration::from_secs(30);
        rig.worker.work(Work::Own { shard, epoch: 2, from: None }).expect("owned");
        rig.batch(shard, &long[0]);
        assert!(rig.worker.deferred.is_empty() && rig.said().is_empty());
        rig.clock.look_ms.store(look.as_millis() as u64, Ordering::Relaxed);
        rig.quiet(&[shard], START + 55 * SECOND);
        let was_put_aside = rig.worker.deferred.has(shard);
        let amid = rig.told(shard);
        let turns = rig.work_off();
        (rig.said(), was_put_aside, amid, rig.told(shard), turns)
    };
    let (calm, aside, _, end, _) = play(Duration::ZERO);
    assert!(!aside && calm[&shard].len() > 10);
    let (slowly, aside, amid, end_slowly, turns) = play(SLOW);
    assert!(aside && turns > 3, "{turns} turns");
    assert!(UnixNanos(START) < amid && amid < end, "{amid:?} of {end:?}");
    assert_same(&calm, &slowly);
    assert_eq!(end, end_slowly);
}

#[test]
fn a_shard_that_is_released_or_lost_leaves_what_waits_to_its_next_owner() {
    let (slow, long) = batches("/slow", &[20, MANY, 20], START);
    for is_released in [true, false] {
        let mut rig = Rig::new(config(), SLOW, &[slow]);
        long.iter().for_each(|batch| rig.batch(slow, batch));
        assert_eq!(rig.worker.deferred.batches(), 2);
        rig.worker.work(if is_released { Work::Release(slow) } else { Work::Lost(slow) }).expect("given up");
        assert!(rig.worker.deferred.is_empty());
        rig.worker.turn().expect("a turn");
        let released = rig.answers.try_recv().ok().filter(|answer| answer.released);
        assert_eq!(released.is_some(), is_released);
        // What waited is not marked as read.
        let first = released.and_then(|answer| answer.low_water).map_or(0, |mark| mark.sequence);
        assert!(first <= 2, "{first}");
        // Its next owner, here the same, reads from there and says everything.
        rig.clock.look_ms.store(0, Ordering::Relaxed);
        rig.worker.work(Work::Own { shard: slow, epoch: 2, from: None }).expect("owned");
        long.iter().for_each(|batch| rig.batch(slow, batch));
        assert_eq!(rig.accounts()[0].1.account.processed, MANY + 40);
    }
}

#[test]
fn when_too_much_waits_the_oldest_goes_to_the_dead_letters_and_is_counted() {
    let (slow, long) = batches("/slow", &[MANY, 10, 20, 40], START);
    let limited = CorrelatorConfig { deferred_batches_max: 2, ..config() };
    let mut rig = Rig::new(limited, SLOW, &[slow]);
    for batch in &long[..2] {
        rig.read += 1;
        let work = Work::Batch { shard: slow, sequence: rig.read, payload: batch.clone() };
        rig.worker.work(work).expect("a batch");
    }
    assert_eq!((rig.worker.deferred.batches(), rig.worker.parts.metrics.board.rejected()), (2, 0));
    let read = rig.accounts()[0].1.next;
    assert!(0 < read && read < MANY, "{read}");
    rig.batch(slow, &long[2]);
    // The rest of the first batch was given up; the others are worked off.
    rig.work_off();
    rig.batch(slow, &long[3]);
    rig.quiet(&[slow], START + 59 * SECOND);
    rig.work_off();
    let line = rig.accounts().remove(0).1;
    assert_eq!((line.next, line.missing), (MANY + 70, 0));
    assert_eq!((line.account.processed, line.account.dropped.batch_time), (read + 70, MANY - read));
    assert_eq!(rig.worker.parts.metrics.board.rejected(), 1);
    let messages = rig.stored.messages.lock().expect("messages");
    let letters: Vec<_> = messages.iter().filter(|m| m.subject.contains("deadletter")).collect();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].payload, long[0]);
    let reason = letters[0].headers.get(HEADER_REASON).expect("a reason");
    assert!(reason.starts_with("batch_time: ") && reason.contains(&read.to_string()), "{reason}");
    drop(messages);
    let gaps: Vec<_> = rig.said().remove(&slow).expect("sections").into_iter().flat_map(|s| s.gaps).collect();
    assert_eq!(gaps.len(), 1);
    assert_eq!(
        (gaps[0].lost, gaps[0].node.as_str(), gaps[0].reason.as_str()),
        (MANY - read, "n1", "batch_time")
    );
}
