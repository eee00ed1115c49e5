//! Growth on synthetic series: what is a leak, and what only looks like one.

use std::sync::Arc;

use proptest::prelude::*;
use tapio_schemas::{EntityRef, EventId, Signal, UnixNanos};

use super::super::shard_tests::{Sim, limit_sample};
use super::*;

const MIB: f64 = 1024.0 * 1024.0;
const LIMIT: f64 = 64.0 * MIB;

/// Deterministic noise in −1 … 1.
fn noise(i: u64) -> f64 {
    let hash = xxhash_rust::xxh3::xxh3_64(&i.to_le_bytes());
    (hash >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

fn points(count: u64, step_s: f64, value: impl Fn(f64) -> f64) -> Vec<Point> {
    (0..count)
        .map(|i| {
            let seconds = i as f64 * step_s;
            Point {
                at: UnixNanos(1_000_000_000_000 + (seconds * 1e9) as u64),
                value: value(seconds),
                event: EventId(u128::from(i) + 1),
            }
        })
        .collect()
}

fn grows(points: &[Point]) -> Option<Growth> {
    find_growth(points, LIMIT, &GrowthRule::memory(&SeriesConfig::default()))
}

/// Seconds at which the growth is first found when the samples come one by one, and what was found.
fn first_found(all: &[Point]) -> Option<(f64, Growth)> {
    let config = SeriesConfig::default();
    let size = WindowSize { fine_points: config.fine_points, cell_ns: 30_000_000_000, coarse_points: 120 };
    let mut window = Window::default();
    all.iter().find_map(|point| {
        window.push(*point, size);
        let found = grows(window.fine())?;
        Some((point.at.since(all[0].at) as f64 / 1e9, found))
    })
}

#[test]
fn a_linear_leak_is_found_early_and_its_end_foretold() {
    let all = points(60, 1.0, |t| 4.0 * MIB + t * MIB);
    let (found_at, growth) = first_found(&all).expect("a leak");
    assert!((10.0..=25.0).contains(&found_at), "found after {found_at} s");
    let truth = 60.0 - found_at;
    let ttl = growth.to_limit;
    assert!(ttl.earliest_s <= truth && truth <= ttl.latest_s, "{truth} not in {ttl:?}");
    assert!(ttl.latest_s - ttl.earliest_s < truth, "{ttl:?} says nothing");
}

#[test]
fn noise_widens_the_interval_and_the_truth_stays_inside() {
    let mut inside = 0;
    let mut told = 0;
    for seed in 0..40u64 {
        let all = points(60, 1.0, |t| 4.0 * MIB + t * MIB + 1.5 * MIB * noise(seed * 1000 + t as u64));
        for last in 24..56 {
            let Some(growth) = grows(&all[..last]) else { continue };
            let truth = 60.0 - (last - 1) as f64;
            told += 1;
            inside += i32::from(growth.to_limit.earliest_s <= truth && truth <= growth.to_limit.latest_s);
        }
    }
    assert!(told > 1000, "told only {told} times");
    let share = f64::from(inside) / f64::from(told);
    assert!(share >= 0.88, "the interval holds the truth in {share:.3} of {told} cases");
}

#[test]
fn an_accelerating_leak_is_foretold_from_its_present_pace() {
    // From 8 MiB, doubling every 20 s: the limit is reached after 60 s.
    let all = points(55, 1.0, |t| 8.0 * MIB * 2f64.powf(t / 20.0));
    let growth = grows(&all).expect("a leak");
    let whole: Vec<(f64, f64)> = all.iter().map(|p| (p.at.as_secs_f64(), p.value)).collect();
    let naive = trend(&whole).unwrap().time_to(LIMIT).unwrap().best_s;
    assert!((growth.to_limit.best_s - 6.0).abs() < (naive - 6.0).abs(), "{:?} vs {naive}", growth.to_limit);
}

#[test]
fn a_slow_leak_is_found_in_the_coarse_window() {
    // 1 MiB a minute, sampled every 5 s: the fine window of ten minutes sees a sixth of the limit.
    let all = points(700, 5.0, |t| 10.0 * MIB + t / 60.0 * MIB * 0.8);
    let coarse: Vec<Point> = all.iter().step_by(6).copied().collect();
    assert!(grows(&coarse[coarse.len() - 115..]).is_some());
}

#[test]
fn what_only_looks_like_a_leak_is_none() {
    let cases: Vec<(&str, Vec<Point>)> = vec![
        ("flat", points(100, 1.0, |t| 30.0 * MIB + 0.5 * MIB * noise(t as u64))),
        ("step, then plateau", points(100, 1.0, |t| if t < 50.0 { 20.0 * MIB } else { 45.0 * MIB })),
        ("ramp, then plateau", points(100, 1.0, |t| (10.0 + t.min(40.0)) * MIB)),
        ("plateau at the limit", points(100, 1.0, |t| (t * MIB * 3.0).min(LIMIT))),
        ("saw of a collector", points(120, 1.0, |t| (20.0 + (t % 20.0)) * MIB)),
        ("saw with deep drops", points(115, 1.0, |t| (5.0 + 1.5 * (t % 20.0)) * MIB)),
        ("falling", points(60, 1.0, |t| (60.0 - t) * MIB)),
        ("too short", points(9, 1.0, |t| (20.0 + 3.0 * t) * MIB)),
        ("below any relevance", points(60, 1.0, |t| (1.0 + 0.1 * t) * MIB)),
        ("saturating", points(120, 1.0, |t| 50.0 * MIB * (1.0 - (-t / 15.0).exp()))),
    ];
    for (name, all) in cases {
        assert_eq!(grows(&all), None, "{name}");
    }
}

#[test]
fn a_saw_is_taken_for_a_leak_at_most_in_its_first_tooth() {
    let all = points(200, 1.0, |t| (20.0 + (t % 20.0)) * MIB);
    for last in 24..all.len() {
        let from = last.saturating_sub(120);
        assert_eq!(grows(&all[from..last]), None, "after {last} s");
    }
}

#[test]
fn a_restart_begins_anew_and_the_next_leak_is_found_again() {
    // Three lives of a process that leaks until it is killed at the limit.
    let all = points(170, 1.0, |t| (4.0 + (t % 60.0)) * MIB);
    assert_eq!(grows(&all[..65]), None, "five samples after the restart");
    let growth = grows(&all[..90]).expect("the second leak");
    assert!(growth.onset >= all[60].at);
}

#[test]
fn gaps_in_the_samples_do_not_change_the_verdict() {
    let all: Vec<Point> = points(60, 1.0, |t| 4.0 * MIB + t * MIB)
        .into_iter()
        .enumerate()
        .filter(|(i, _)| !(20..30).contains(i) && i % 7 != 3)
        .map(|(_, p)| p)
        .collect();
    let growth = grows(&all).expect("a leak");
    assert!((growth.trend.slope / MIB - 1.0).abs() < 0.05);
}

#[test]
fn random_walks_are_rarely_taken_for_leaks() {
    let mut told = 0;
    for seed in 0..300u64 {
        let mut level = 32.0 * MIB;
        let all = points(120, 1.0, |_| 0.0)
            .into_iter()
            .enumerate()
            .map(|(i, p)| {
                level = (level + MIB * noise(seed * 7919 + i as u64)).clamp(MIB, LIMIT);
                Point { value: level, ..p }
            })
            .collect::<Vec<_>>();
        told += u32::from(grows(&all).is_some());
    }
    assert!(told <= 45, "{told} of 300 random walks");
}

fn signals_of(all: &[Point], limit: f64) -> Vec<Signal> {
    let mut sim = Sim::new();
    let entity = Arc::new(
        EntityRef { cluster: "c".into(), node: "n".into(), cgroup: "/demo".into(), ..EntityRef::default() }
            .sealed(),
    );
    let events = all.iter().map(|p| limit_sample(&entity, p.at, p.event, p.value, limit)).collect::<Vec<_>>();
    sim.feed(&events);
    sim.finish();
    sim.signals
}

#[test]
fn a_leak_until_the_limit_gives_growth_then_nearness_then_their_end() {
    let mut all = points(60, 1.0, |t| 4.0 * MIB + t * MIB);
    all.extend(points(80, 1.0, |_| 3.0 * MIB).into_iter().skip(60));
    let signals = signals_of(&all, LIMIT);
    let growth: Vec<&Signal> = signals.iter().filter(|s| s.kind == SignalKind::MemoryGrowth).collect();
    assert!(growth.len() > 20, "revisions: {}", growth.len());
    assert!(growth.iter().all(|s| s.id == growth[0].id));
    assert!(growth.windows(2).all(|w| w[0].revision < w[1].revision));
    assert!(growth.last().unwrap().ended);
    assert!(growth[..growth.len() - 1].iter().all(|s| !s.ended && s.forecast.is_some()));
    assert!(signals.iter().any(|s| s.kind == SignalKind::MemoryNearLimit && !s.ended));
    for needed in ["usage_bytes", "limit_bytes", "slope_bytes_per_s", "group_type", "intent"] {
        assert!(growth[0].attribute(needed).is_some(), "{needed}");
    }
    assert!(!growth[0].evidence.is_empty());
}

/// Memory that is used, and the share of its limit that this is, whichever of the two is told first.
#[test]
fn a_limit_follows_from_usage_and_share_of_one_moment_only() {
    for turn in 0..2u64 {
        let (mut store, mut counters, mut out) =
            (SeriesStore::new(SeriesConfig::default()), Counters::default(), Vec::new());
        let usages = [16.0, 16.0, 80.0, 82.0, 82.0];
        for (minute, usage) in (1u64..).zip(usages) {
            let sample = |series: u128, meter: Meter, value: f64| Sample {
                at: UnixNanos(minute * 60_000_000_000),
                id: EventId(1),
                series,
                owner: 7,
                entity: Arc::default(),
                meter,
                value,
                limit: 0.0,
                count: 0,
                row: u8::MAX,
                label: "".into(),
                place: 0,
            };
            let mut both =
                [sample(1, Meter::MemoryUsage, usage * MIB), sample(2, Meter::MemoryShare, usage / 128.0)];
            both.rotate_left(turn as usize);
            both.iter().for_each(|one| store.take(one, &mut out, &mut counters));
        }
        let limit = store.shared[&7].memory_limit;
        assert!((limit / MIB - 128.0).abs() < 1e-6, "{limit}, turn {turn}");
        let near =
            out.iter().filter(|f| matches!(f, Finding::Seen(s) if s.kind == SignalKind::MemoryNearLimit));
        assert_eq!(near.count(), 0, "turn {turn}");
    }
}

/// From where on something is news is not what is usual, and is not told as it.
#[test]
fn a_level_that_is_crossed_is_not_told_as_what_is_usual() {
    let config = SeriesConfig::default();
    let cases = [
        (Meter::CpuShare, 1.1, config.near_limit, SignalKind::CpuSaturated),
        (Meter::IoPressure, 1.5 * config.io_pressure, config.io_pressure, SignalKind::IoPressure),
    ];
    for (meter, value, threshold, kind) in cases {
        let (mut store, mut counters, mut out) =
            (SeriesStore::new(config.clone()), Counters::default(), Vec::new());
        for minute in 1..=3u64 {
            let sample = Sample {
                at: UnixNanos(minute * 60_000_000_000),
                id: EventId(1),
                series: 1,
                owner: 7,
                entity: Arc::default(),
                meter,
                value,
                limit: 0.0,
                count: 0,
                row: u8::MAX,
                label: "".into(),
                place: 0,
            };
            store.take(&sample, &mut out, &mut counters);
        }
        let seen = out.iter().find_map(|f| match f {
            Finding::Seen(seen) if seen.kind == kind => Some(seen),
            _ => None,
        });
        let seen = seen.expect("two samples are enough");
        assert!(seen.observed == value && seen.baseline.is_nan(), "{} {}", seen.observed, seen.baseline);
        assert_eq!(seen.strength, 0.5 * value / threshold, "half certain at the threshold");
    }
}

#[test]
fn kills_of_what_nothing_measures_are_bounded() {
    const COUNT_MAX: usize = 16;
    let config = SeriesConfig { count_max: COUNT_MAX, ..SeriesConfig::default() };
    let (mut store, mut counters) = (SeriesStore::new(config), Counters::default());
    for owner in 0..1000u32 {
        store.kill_told(u128::from(owner), UnixNanos(1 + u64::from(owner)), &mut counters);
    }
    assert!(store.shared.len() <= COUNT_MAX && store.shared.contains_key(&999));
    assert_eq!(counters.evicted.series, 1000 - store.shared.len() as u64);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// The trend of a line is the line, wherever it lies and however it is sampled.
    #[test]
    fn trend_is_exact_on_lines(slope in -1e6f64..1e6, level in -1e9f64..1e9, gaps in prop::collection::vec(0.1f64..30.0, 5..60)) {
        let mut t = 0.0;
        let line: Vec<(f64, f64)> = gaps.iter().map(|gap| { t += gap; (t, level + slope * t) }).collect();
        let found = trend(&line).unwrap();
        prop_assert!((found.slope - slope).abs() <= 1e-6 * (1.0 + slope.abs() + level.abs()));
        prop_assert!(found.slope_low <= found.slope && found.slope <= found.slope_high);
    }

    /// No input makes the detector panic or tell a time before now.
    #[test]
    fn any_series_is_survived(values in prop::collection::vec(prop::num::f64::NORMAL | prop::num::f64::ZERO, 0..130), limit in -1.0f64..1e12) {
        let all: Vec<Point> = values.iter().enumerate().map(|(i, v)| Point {
            at: UnixNanos(1 + i as u64 * 1_000_000_000), value: *v, event: EventId(i as u128 + 1),
        }).collect();
        if let Some(growth) = find_growth(&all, limit, &GrowthRule::memory(&SeriesConfig::default())) {
            prop_assert!(growth.to_limit.earliest_s >= 0.0);
            prop_assert!(growth.to_limit.earliest_s <= growth.to_limit.best_s);
            prop_assert!(growth.to_limit.best_s <= growth.to_limit.latest_s);
        }
    }
}
