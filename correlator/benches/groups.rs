//! What 100,000 open semantic groups take of memory, and that the bounds on groups and memory hold: else it panics.
//! `cargo bench -p tapio-correlator --bench groups`

use std::sync::Arc;

use tapio_correlator::config::CorrelatorConfig;
use tapio_correlator::shards::ShardSet;
use tapio_schemas::names::SHARD_COUNT;
use tapio_schemas::payload::KernelData;
use tapio_schemas::wire::EventBatch;
use tapio_schemas::{
    EntityRef, EventId, EventKind, EventSeverity, Payload, ProducerId, Source, UnifiedEvent, UnixNanos,
};

const START: u64 = 1_700_000_000_000_000_000;
/// Distinct programs that crash within a second: each opens a group, and an episode.
const OPEN: [u64; 2] = [100_000, 400_000];

/// Memory that the first so many may take, MiB.
const MEMORY_MAX_MIB: f64 = 512.0;

fn crash(number: u64) -> UnifiedEvent {
    let entity = EntityRef {
        cluster: "c".into(),
        node: format!("n{}", number % 50).into(),
        cgroup: format!("/kubepods/pod{number}").into(),
        ..EntityRef::default()
    };
    let data = KernelData { signal: 11, is_init: true, comm: "app".into(), ..KernelData::default() };
    UnifiedEvent {
        id: EventId(u128::from(number) + 1),
        timestamp: UnixNanos(START + number),
        kind: EventKind::ProcessExit,
        source: Source::Ebpf,
        severity: EventSeverity::Error,
        pid: 7,
        entity: Arc::new(entity.sealed()),
        payload: Payload::Kernel(Box::new(data)),
        ..UnifiedEvent::default()
    }
}

/// Resident bytes of this process, from `/proc/self/statm` (pages of 4 KiB).
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("procfs");
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("a number") * 4096
}

fn main() {
    for count in OPEN {
        let before = resident();
        let mut shards = ShardSet::new("c", 0..SHARD_COUNT, &CorrelatorConfig::default());
        let mut batches: Vec<EventBatch> =
            (0..SHARD_COUNT).map(|shard| EventBatch::new(ProducerId(1), 1, shard)).collect();
        for number in 0..count {
            let event = crash(number);
            let batch = &mut batches[usize::from(event.key().shard())];
            batch.push(event);
            if batch.len() >= 512 {
                shards
                    .take(&batch.finish(UnixNanos(0)).expect("a batch"), None, UnixNanos::MAX)
                    .expect("taken");
            }
        }
        for batch in batches.iter_mut().filter(|batch| !batch.is_empty()) {
            shards.take(&batch.finish(UnixNanos(0)).expect("a batch"), None, UnixNanos::MAX).expect("taken");
        }
        drop(batches);
        shards.advance(UnixNanos(START + 2_000_000_000));
        let open: Vec<String> = shards.open().iter().map(|(kind, open)| format!("{open} {kind}")).collect();
        let evicted: u64 = shards.take_counters().map(|counters| counters.evicted.groups).sum();
        let grown = resident().saturating_sub(before) as f64 / 1048576.0;
        let groups =
            shards.open().into_iter().find(|(kind, _)| *kind == "groups").map_or(0, |(_, open)| open as u64);
        println!(
            "{count} programs crash: {} open, {evicted} groups closed early, {:.0} MiB resident more",
            open.join(", "),
            grown
        );
        assert_eq!(
            groups + evicted,
            count,
            "each crash is an open group, or one that was closed early and counted"
        );
        let bound = (CorrelatorConfig::default().groups.count_max * usize::from(SHARD_COUNT)) as u64;
        assert!(groups <= bound, "{groups} groups, the bound is {bound}");
        assert!(
            count > OPEN[0] || (groups == count && grown <= MEMORY_MAX_MIB),
            "{groups} groups: {grown:.0} MiB"
        );
    }
}
