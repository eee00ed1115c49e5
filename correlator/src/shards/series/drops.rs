//! Packets that are dropped more often than is usual here.
//!
//! Many machines drop a few packets at all times (frames of protocols that nobody asked for), so what counts is the rate
//! against the series' own past: the median of its rates over the window. While the drops go on the baseline stays as it
//! was when they began, or a long loss would become the usual. What comes at this time of every day is usual, too (`season.rs`),
//! once the days have been seen: a backup that drops packets each night is no news.

use tapio_schemas::{SignalKind, UnixNanos};

use super::super::counters::Counters;
use super::super::record::Sample;
use super::level::{Level, Stands, Threshold};
use super::season::Season;
use super::trend::median;
use super::window::{Point, WindowSize};
use super::{Finding, Series, increase, observation};
use crate::config::{SeriesConfig, nanos};

/// Series of a shard whose season is learnt, 13 KiB each; further ones have none.
const SEASONS_MAX: usize = 256;
/// Intervals that make a baseline.
const BASELINE_INTERVALS_MIN: usize = 3;
/// It is over when the rate falls below this share of what made it news.
const LEAVE_SHARE: f64 = 0.5;

/// What is known of a series of drops.
#[derive(Debug, Default)]
pub(super) struct Drops {
    level: Level,
    /// Per second, while it is unusual: as it was before.
    baseline: f64,
    /// Rates by time of the day, from the first one on that might be news.
    pub(super) season: Option<Box<Season>>,
    /// First sample that the baseline rests on, while it is unusual or may be soon.
    from: Option<UnixNanos>,
}

impl Drops {
    /// The rate above which drops are more than usual at this time; then learns the rate of now.
    fn seasonal(
        &mut self,
        at: UnixNanos,
        rate: f64,
        config: &SeriesConfig,
        seasons: &mut usize,
        counters: &mut Counters,
    ) -> f64 {
        if self.season.is_none() && rate >= config.drops_per_s && *seasons < SEASONS_MAX {
            self.season = Some(Box::default());
            *seasons += 1;
        }
        let Some(season) = &mut self.season else {
            counters.evicted.unseasoned += u64::from(rate >= config.drops_per_s);
            return 0.0;
        };
        let above = season.usual(at).map_or(0.0, |usual| usual.above());
        season.learn(at, rate);
        above
    }

    /// Time from which on samples are needed to come to the same verdict again.
    pub(super) fn needs_from(&self) -> Option<UnixNanos> {
        self.from
    }
}

/// Takes a sample. `seasons`: how many series have a season.
pub(super) fn drops(
    series: &mut Series,
    seasons: &mut usize,
    sample: &Sample,
    config: &SeriesConfig,
    out: &mut Vec<Finding>,
    counters: &mut Counters,
) {
    let before = series.last;
    let more = increase(series, sample);
    let size = WindowSize {
        fine_points: config.fine_points,
        cell_ns: nanos(config.coarse_cell),
        coarse_points: config.coarse_points,
    };
    series.window.push(Point { at: sample.at, value: sample.value, event: sample.id }, size);
    let Some((at, _)) = before else { return };
    let rate = more / (sample.at.since(at) as f64 / 1e9);
    let points = series.window.fine();
    if series.drops.from.is_none() {
        // The rate in question is no part of its own baseline.
        let Some(usual) = usual_rate(&points[..points.len() - 1]) else { return };
        series.drops.baseline = usual;
    }
    let baseline = series.drops.baseline;
    let seasonal = series.drops.seasonal(sample.at, rate, config, seasons, counters);
    let enter = config.drops_per_s.max(config.drops_factor * baseline).max(seasonal);
    let stands = series.drops.level.next(rate, Threshold { enter, leave: LEAVE_SHARE * enter, samples: 2 });
    let unusual = stands == Stands::Above || rate >= enter;
    series.drops.from = if unusual { series.drops.from.or(series.window.fine_start()) } else { None };
    // Each place where packets are dropped is a deviation of its own: one may end while another goes on.
    let mut seen = observation(SignalKind::NetDrops, sample);
    seen.topic = sample.series as u64;
    match stands {
        Stands::Below => {}
        Stands::Left => out.push(Finding::Over(seen.episode())),
        Stands::Above => {
            (seen.observed, seen.baseline, seen.unit) = (rate, baseline, "{packet}/s");
            seen.count = more as u64;
            // Others sample once a minute: it is not over because they pause.
            seen.idle_ns = (3 * sample.at.since(at)).max(30_000_000_000);
            // Half certain at the threshold, certain at twice of it.
            seen.strength = (0.5 * rate / enter).clamp(0.3, 1.0);
            let seen = seen
                .with("drop_reason", sample.label.as_str())
                .with("drops_per_s", rate)
                .with("usual_drops_per_s", baseline);
            out.push(Finding::Seen(Box::new(seen)));
        }
    }
}

/// The median of the rates between samples, per second.
fn usual_rate(points: &[Point]) -> Option<f64> {
    let rate = |pair: &[Point]| {
        let seconds = pair[1].at.since(pair[0].at) as f64 / 1e9;
        // A fall is a restart of the machine, or of a collector whose counters begin with it: unknown, and rare enough to be left
        // out.
        (pair[1].value >= pair[0].value).then(|| (pair[1].value - pair[0].value) / seconds)
    };
    let mut rates: Vec<f64> = points.windows(2).filter_map(rate).collect();
    (rates.len() >= BASELINE_INTERVALS_MIN).then(|| median(&mut rates))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tapio_schemas::payload::MetricData;
    use tapio_schemas::{Attribute, EntityRef, EventId, EventKind, Payload, Signal, UnifiedEvent};

    use super::super::super::shard_tests::{Sim, event, seconds};
    use super::*;

    /// A sample each five seconds, of a counter that rises as `per_second` says.
    fn samples(reason: &str, count: u64, per_second: impl Fn(u64) -> f64) -> Vec<UnifiedEvent> {
        let node = EntityRef { cluster: "c".into(), node: "n1".into(), ..EntityRef::default() };
        let node = Arc::new(node.sealed());
        let mut value = 1000.0;
        let sample = |i: u64| {
            value += 5.0 * per_second(i * 5);
            let data = MetricData {
                name: "system.network.stack.dropped".into(),
                value,
                attributes: vec![Attribute::new("reason", reason)],
                ..MetricData::default()
            };
            let id = EventId::derive(seconds(i as f64 * 5.0), reason.as_bytes());
            event(EventKind::Metric, &node, seconds(i as f64 * 5.0), id, Payload::Metric(Box::new(data)))
        };
        (0..count).map(sample).collect()
    }

    fn signals(events: &[UnifiedEvent]) -> Vec<Signal> {
        let mut sim = Sim::new();
        sim.feed(events);
        sim.finish();
        sim.signals.into_iter().filter(|s| s.kind == SignalKind::NetDrops).collect()
    }

    #[test]
    fn more_than_usual_for_a_while_is_told_with_its_reason_and_its_end() {
        let told =
            signals(&samples("listen_overflow", 60, |t| if (100..200).contains(&t) { 50.0 } else { 0.0 }));
        let (first, last) = (&told[0], told.last().unwrap());
        assert_eq!(first.attribute("drop_reason").and_then(|v| v.as_text()), Some("listen_overflow"));
        assert_eq!(first.onset, seconds(105.0), "the second sample that is unusual");
        assert_eq!(first.entity.node, "n1");
        assert!(last.ended && last.id == first.id && last.last_seen >= seconds(195.0));
        assert!(last.strength.get() > 0.9 && last.count >= 900, "{last:?}");
    }

    #[test]
    fn what_is_usual_here_or_passes_is_no_news() {
        assert_eq!(signals(&samples("ip_receive", 100, |_| 30.0)), vec![], "always so");
        assert_eq!(
            signals(&samples("ip_receive", 100, |t| if t == 250 { 500.0 } else { 0.0 })),
            vec![],
            "one peak"
        );
        assert_eq!(
            signals(&samples("ip_receive", 100, |t| if t > 250 { 0.5 } else { 0.0 })),
            vec![],
            "a trickle"
        );
        assert_eq!(
            signals(&samples("ip_receive", 100, |t| if t > 250 { 60.0 } else { 30.0 })),
            vec![],
            "twice"
        );
    }

    #[test]
    fn what_goes_on_does_not_become_usual_and_reasons_are_told_apart() {
        let long = samples("ip_receive", 400, |t| if t >= 200 { 50.0 } else { 1.0 });
        let short = samples("listen_overflow", 400, |t| if (200..300).contains(&t) { 50.0 } else { 0.0 });
        let mut both: Vec<UnifiedEvent> = [long, short].concat();
        both.sort_by_key(|e| e.timestamp);
        let told = signals(&both);
        let of = |reason: &str| -> Vec<&Signal> {
            let is = |s: &&Signal| s.attribute("drop_reason").and_then(|v| v.as_text()) == Some(reason);
            told.iter().filter(is).collect()
        };
        let (long, short) = (of("ip_receive"), of("listen_overflow"));
        assert!(long.last().unwrap().last_seen >= seconds(1990.0), "{:?}", long.last());
        assert!(short.last().unwrap().ended && short.last().unwrap().last_seen < seconds(320.0));
        assert_eq!(long[0].baseline, 1.0);
    }

    #[test]
    fn drops_of_every_night_are_no_news_from_the_third_on_unless_they_are_more() {
        let (mut series, mut seasons, mut out) = (Series::default(), 0, Vec::new());
        let entity = Arc::new(EntityRef { node: "n1".into(), ..EntityRef::default() }.sealed());
        let (mut nights, mut counters) = (Vec::new(), Counters::default());
        let mut value = 0.0;
        for minute in 0..5 * 1440u64 {
            let is_backup = (120..150).contains(&(minute % 1440));
            // The fifth one drops four times as many.
            value += 60.0
                * if !is_backup {
                    0.1
                } else if minute > 4 * 1440 {
                    160.0
                } else {
                    40.0
                };
            let sample = Sample {
                at: UnixNanos((20_000 * 1440 + minute) * 60_000_000_000),
                id: EventId(u128::from(minute) + 1),
                series: 1,
                owner: 1,
                entity: Arc::clone(&entity),
                meter: super::super::Meter::NetDrops,
                value,
                limit: 0.0,
                count: 0,
                row: u8::MAX,
                label: "ip_receive".into(),
                place: 0,
            };
            drops(&mut series, &mut seasons, &sample, &SeriesConfig::default(), &mut out, &mut counters);
            series.last = Some((sample.at, sample.value));
            if minute % 1440 == 1439 {
                nights.push(out.drain(..).any(|found| matches!(found, Finding::Seen(_))));
            }
        }
        assert_eq!((nights, seasons), (vec![true, true, false, false, true], 1));
    }

    #[test]
    fn a_restart_needs_what_the_baseline_rests_on() {
        let events = samples("ip_receive", 100, |t| if t >= 250 { 50.0 } else { 0.0 });
        let mut sim = Sim::new();
        sim.feed(&events);
        assert!(sim.low_water() <= seconds(5.0), "{:?}", sim.low_water());
        let quiet = samples("ip_receive", 100, |_| 0.0);
        let mut sim = Sim::new();
        sim.feed(&quiet);
        assert!(sim.low_water() > seconds(400.0));
    }
}
