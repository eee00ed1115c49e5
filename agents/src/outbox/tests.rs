use super::*;
use proptest::prelude::*;
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::wire::EventBatch;

struct Source(EventBatch, u64, Ledger);

impl Source {
    fn new(ledger: &Ledger) -> Self {
        Self(EventBatch::new(ProducerId(1), 1, 5), 0, ledger.clone())
    }

    fn frame(&mut self) -> Frame {
        self.0.push(UnifiedEvent::default());
        self.2.produced(&self.2.collector("test"), 1);
        self.2.enter(Place::Batch, 1);
        let payload = Bytes::from(self.0.finish(UnixNanos(0)).unwrap());
        self.1 += 1;
        Frame::from_payload(payload, None).unwrap()
    }
}

fn drain(outbox: &Outbox) -> Vec<Taken> {
    std::iter::from_fn(|| outbox.try_next()).collect()
}

fn ids(taken: &[Taken]) -> Vec<String> {
    taken.iter().map(|t| t.frame.msg_id.clone()).collect()
}

fn expected(range: std::ops::Range<u64>) -> Vec<String> {
    range.map(|n| Frame::id(ProducerId(1), 1, 5, n)).collect()
}

#[test]
fn order_holds_across_memory_and_disk() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::new(&Metrics::new());
    let mut source = Source::new(&ledger);
    let first = source.frame();
    let room = first.payload.len() as u64 * 3;
    let spool = Spool::open(dir.path(), 1 << 20, 1000).unwrap();
    let outbox = Outbox::new(room, Some(spool), ledger.clone());
    outbox.push(first);
    for _ in 1..10 {
        outbox.push(source.frame());
    }
    let places = ledger.snapshot().in_flight;
    assert_eq!(places[Place::Memory as usize].1, 3);
    assert_eq!(places[Place::Spool as usize].1, 7);
    let mut sent: Vec<Taken> = (0..5).filter_map(|_| outbox.try_next()).collect();
    // Memory has room again, but the disk still holds older batches.
    outbox.push(source.frame());
    sent.extend(drain(&outbox));
    assert_eq!(ids(&sent), expected(0..11));
    sent.iter().for_each(|t| outbox.acknowledged(t.order));
    let end = ledger.snapshot();
    assert_eq!((end.published, end.in_flight_total()), (11, 0));
    assert!(end.balances());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "the lock alone");
}

#[test]
fn what_is_not_answered_survives_the_run_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Spool::open(dir.path(), 1 << 20, 1 << 16).unwrap();
    let ledger = Ledger::new(&Metrics::new());
    let mut source = Source::new(&ledger);
    let outbox = Outbox::new(1 << 20, Some(open()), ledger.clone());
    (0..6).for_each(|_| outbox.push(source.frame()));
    let sent: Vec<Taken> = (0..3).filter_map(|_| outbox.try_next()).collect();
    outbox.acknowledged(sent[0].order);
    assert_eq!(outbox.settle().unwrap(), 5);
    assert!(ledger.snapshot().balances());
    drop(outbox);

    let ledger = Ledger::new(&Metrics::new());
    let outbox = Outbox::new(1 << 20, Some(open()), ledger.clone());
    assert_eq!(ledger.snapshot().produced, 5);
    assert_eq!(ids(&drain(&outbox)), expected(1..6));
}

#[test]
fn sheds_by_severity_and_counts_what_does_not_fit() {
    let ledger = Ledger::new(&Metrics::new());
    let mut source = Source::new(&ledger);
    let first = source.frame();
    let outbox = Outbox::new(first.payload.len() as u64 * 20, None, ledger.clone());
    outbox.push(first);
    let mut shed_from = Vec::new();
    for n in 1..20 {
        outbox.push(source.frame());
        for severity in [EventSeverity::Info, EventSeverity::Warning, EventSeverity::Error] {
            if outbox.sheds(severity, 0).is_some() && shed_from.iter().all(|(s, _)| *s != severity) {
                shed_from.push((severity, n + 1));
            }
        }
    }
    let severities = [EventSeverity::Info, EventSeverity::Warning, EventSeverity::Error];
    assert_eq!(shed_from, severities.into_iter().zip([14, 17, 19]).collect::<Vec<_>>());
    assert_eq!(outbox.sheds(EventSeverity::Critical, 0), None);
    (0..3).for_each(|_| outbox.push(source.frame()));
    let end = ledger.snapshot();
    assert_eq!(end.dropped, vec![(DropReason::BacklogFull, 3)]);
    assert!(end.balances());
}

#[test]
fn what_a_dead_publisher_had_taken_comes_again_in_order() {
    let ledger = Ledger::new(&Metrics::new());
    let mut source = Source::new(&ledger);
    let outbox = Outbox::new(1 << 20, None, ledger.clone());
    (0..6).for_each(|_| outbox.push(source.frame()));
    let taken: Vec<Taken> = (0..4).filter_map(|_| outbox.try_next()).collect();
    outbox.acknowledged(taken[1].order);
    outbox.take_back();
    let again = drain(&outbox);
    assert_eq!(ids(&again), [expected(0..1), expected(2..6)].concat());
    again.iter().for_each(|t| outbox.acknowledged(t.order));
    // An answer that comes twice, or late to the wrong generation, counts once.
    outbox.acknowledged(taken[2].order);
    assert_eq!(ledger.snapshot().published, 6);
    assert!(ledger.snapshot().balances());
}

/// What can happen to an outbox.
#[derive(Debug, Clone)]
enum Step {
    Push,
    Take,
    AcknowledgeOldest,
    PublisherDies,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Push),
        4 => Just(Step::Take),
        3 => Just(Step::AcknowledgeOldest),
        1 => Just(Step::PublisherDies),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever happens, every batch is acknowledged once and in order, and the counts add up.
    #[test]
    fn nothing_is_lost_repeated_or_overtaken(steps in prop::collection::vec(step(), 1..120)) {
        let dir = tempfile::tempdir().unwrap();
        let open = |ledger: &Ledger| {
            // Room for two or three batches in memory, and as many in one file.
            Outbox::new(1000, Some(Spool::open(dir.path(), 1 << 20, 1000).unwrap()), ledger.clone())
        };
        let mut ledger = Ledger::new(&Metrics::new());
        let mut source = Source::new(&ledger);
        let mut outbox = open(&ledger);
        let mut window: VecDeque<Taken> = VecDeque::new();
        let mut done = Vec::new();
        for step in steps {
            match step {
                Step::Push => outbox.push(source.frame()),
                Step::Take => window.extend(outbox.try_next()),
                Step::AcknowledgeOldest => {
                    if let Some(taken) = window.pop_front() {
                        outbox.acknowledged(taken.order);
                        done.push(taken);
                    }
                }
                Step::PublisherDies => {
                    window.clear();
                    outbox.take_back();
                }
                Step::Restart => {
                    window.clear();
                    outbox.settle().unwrap();
                    drop(outbox);
                    ledger = Ledger::new(&Metrics::new());
                    source.2 = ledger.clone();
                    outbox = open(&ledger);
                }
            }
            let now = ledger.snapshot();
            prop_assert!(now.balances(), "{:?}", now);
        }
        done.extend(window);
        done.extend(drain(&outbox));
        prop_assert_eq!(ids(&done), expected(0..source.1));
    }
}
