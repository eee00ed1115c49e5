//! What stage one takes and what it refuses.

use tapio_schemas::{EventId, UnixNanos};

use super::shard_tests::{Sim, cgroup, limit_sample, oom, seconds};
use super::{BatchError, ShardSet};
use crate::config::CorrelatorConfig;

#[test]
fn a_hole_in_the_numbers_is_told_once_and_exactly() {
    let app = cgroup("/app");
    let events: Vec<_> =
        (0..6).map(|i| limit_sample(&app, seconds(f64::from(i)), EventId(i as u128 + 1), 1.0, 9.0)).collect();
    let mut sim = Sim::new();
    let bytes: Vec<Vec<u8>> = events.iter().map(|e| sim.encode(e)).collect();
    for index in [0, 1, 4, 2, 5, 5] {
        sim.set.take(&bytes[index], None, UnixNanos::MAX).unwrap();
    }
    sim.watermark.caught_up(seconds(5.0));
    sim.finish();
    let gaps: Vec<_> = sim.sections.iter().flat_map(|s| &s.gaps).collect();
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert_eq!(gaps[0].lost, 1);
    assert_eq!(sim.counters().duplicate_batches, 1);
}

#[test]
fn bad_bytes_are_refused_with_a_reason() {
    let mut set = ShardSet::new("c", 0..64, &CorrelatorConfig::default());
    let good = Sim::new().encode(&oom(&cgroup("/app"), 1.0, 1, 1));
    let shard = oom(&cgroup("/app"), 1.0, 1, 1).key().shard();
    let reason = |set: &mut ShardSet, bytes: &[u8], subject| {
        set.take(bytes, subject, UnixNanos::MAX).map(|_| ()).unwrap_err().reason()
    };
    assert_eq!(reason(&mut set, b"garbage", None), "truncated");
    assert_eq!(reason(&mut set, &[7u8; 300], None), "magic");
    assert_eq!(reason(&mut set, &good[..good.len() - 1], None), "truncated");
    assert_eq!(reason(&mut set, &good, Some((shard + 1) % 64)), "shard");
    assert_eq!(set.take(&good, Some(shard), UnixNanos::MAX).map(|_| ()), Ok::<(), BatchError>(()));
}

#[test]
fn events_without_time_or_too_old_are_refused_and_counted() {
    let app = cgroup("/app");
    let mut sim = Sim::new();
    let mut timeless = oom(&app, 1.0, 1, 1);
    timeless.timestamp = UnixNanos(0);
    sim.feed(&[timeless, oom(&app, 7300.0, 2, 2), oom(&app, 3600.0, 3, 3)]);
    let counters = sim.counters();
    assert_eq!((counters.dropped.integrity, counters.dropped.too_old, counters.events), (1, 1, 3));
}
