//! What the detectors know at a step, as deviations of services.

use std::collections::BTreeMap;

use smol_str::{SmolStr, format_smolstr};
use tapio_schemas::service::{Measure, Step, StepKind};
use tapio_schemas::{Attribute, SignalKind};

use super::Services;
use super::book::{Deviation, ENDS, Key};
use super::durations::Series;
use super::meters::Sign;
use super::odd::{Odd, What};
use super::retries::Edge;
use crate::shards::series::{Knows, Period};

/// Most that all further odd things add to the strongest one, nats, and each of them.
const FURTHER: (f64, f64) = (2.0, 0.5);
/// Highest evidence of what is odd about the ways of a service.
const WAYS_MAX: f64 = 14.0;

/// A processor that is used less is idle, however many times the usual it is: share of it, or processors.
const MUCH_CPU: f64 = 0.3;

/// What evidence of a measure is worth: a jump of the processor has other reasons as well, a quantile of a histogram
/// jumps by itself.
fn weight(sign: Sign, measure: Measure) -> f64 {
    match (sign, measure) {
        (Sign::CpuSaturated, _) => 1.0,
        (Sign::CpuRaised, _) => 0.8,
        // It rises slowly or not at all: a leap has a reason.
        (Sign::Shifted, Measure::MemoryShare | Measure::MemoryBytes) => 0.8,
        (Sign::Shifted, Measure::SuccessShare) => 0.5,
        (Sign::Shifted, Measure::LatencySeconds) => 0.35,
        (Sign::Shifted, _) => 0.3,
    }
}

fn unit(measure: Measure) -> &'static str {
    match measure {
        Measure::LatencySeconds => "s",
        Measure::RequestsPerSecond | Measure::SystemCalls => "1/s",
        Measure::CpuCores => "{cpu}",
        Measure::MemoryBytes => "By",
        _ => "1",
    }
}

/// What is known of a season, in words.
fn in_words_of_season(knows: Knows) -> SmolStr {
    match knows {
        Knows::Cold(days) => format_smolstr!("not known: {days} whole days were seen"),
        Knows::None => SmolStr::new_static("none"),
        Knows::Season(Period::Day) => SmolStr::new_static("another day was never so"),
        Knows::Season(Period::Week) => SmolStr::new_static("another week was never so"),
    }
}

/// A step in words.
fn in_words(step: &Step) -> SmolStr {
    match step.kind {
        StepKind::Call if step.service.is_empty() => format_smolstr!("the call {}", step.name),
        StepKind::Call => format_smolstr!("the call {} of {}", step.name, step.service),
        StepKind::FailedCall => format_smolstr!("the failed call {}", step.name),
        StepKind::Log => format_smolstr!("the log line `{}`", step.name),
        StepKind::ErrorLog => format_smolstr!("the error `{}`", step.name),
    }
}

fn durations(series: &Series, evidence: f64) -> Deviation {
    let (bad, all) = series.cusum.counts();
    let seen = &series.seen;
    Deviation {
        evidence,
        since: series.cusum.since(),
        count: bad,
        baseline: seen.usual_ns / 1e6,
        observed: seen.now_ns / 1e6,
        unit: "ms",
        attributes: vec![
            Attribute::new("operation", seen.operation.as_str()),
            Attribute::new("usual_ms", rounded(seen.usual_ns / 1e6)),
            Attribute::new("now_ms", rounded(seen.now_ns / 1e6)),
            Attribute::new("bad", bad as i64),
            Attribute::new("of", all as i64),
        ],
        events: series.evidence.clone(),
    }
}

fn repeated(edge: &Edge, evidence: f64) -> Deviation {
    let seen = edge.seen;
    let mut attributes = vec![
        Attribute::new("usual", rounded(seen.usual)),
        Attribute::new("now", rounded(seen.now)),
        Attribute::new("failed", rounded(seen.failed)),
    ];
    let times = [("load_times", seen.load), ("asked_times", seen.asked), ("answered_times", seen.answered)];
    attributes
        .extend(times.into_iter().filter_map(|(key, times)| Some(Attribute::new(key, rounded(times?)))));
    Deviation {
        evidence,
        since: edge.cusum.since(),
        count: edge.cusum.counts().0,
        baseline: seen.usual,
        observed: seen.now,
        unit: "1",
        attributes,
        events: edge.events.clone(),
    }
}

/// Two digits that mean something.
fn rounded(value: f64) -> f64 {
    if !value.is_finite() || value == 0.0 {
        return 0.0;
    }
    let scale = 10f64.powf(1.0 - value.abs().log10().floor());
    (value * scale).round() / scale
}

fn odd(all: &[Odd]) -> Option<Deviation> {
    let strongest =
        all.iter().max_by(|a, b| a.evidence.total_cmp(&b.evidence).then(b.since.cmp(&a.since)))?;
    let further = (FURTHER.1 * (all.len() - 1) as f64).min(FURTHER.0);
    let mut attributes = vec![
        Attribute::new("operation", strongest.operation.as_str()),
        Attribute::new("bad", strongest.counts.0 as i64),
        Attribute::new("of", strongest.counts.1 as i64),
    ];
    match &strongest.what {
        What::Missing { given, missing, of } => {
            attributes.push(Attribute::new("missing", in_words(missing).as_str()));
            attributes.extend(given.as_ref().map(|g| Attribute::new("given", in_words(g).as_str())));
            attributes.push(Attribute::new("usual", *of as i64));
        }
        What::New(step) => attributes.push(Attribute::new("new", in_words(step).as_str())),
        What::Empty => attributes.push(Attribute::new("missing", "every call that it makes")),
    }
    let is_error = |o: &Odd| matches!(&o.what, What::New(step) if step.kind == StepKind::ErrorLog);
    if let Some(error) = all.iter().filter(|o| is_error(o)).max_by(|a, b| a.evidence.total_cmp(&b.evidence))
        && let What::New(step) = &error.what
    {
        attributes.push(Attribute::new("error", step.name.as_str()));
    }
    let mut events: Vec<_> = all.iter().flat_map(|o| o.events.iter().copied()).collect();
    events.sort_unstable();
    events.dedup();
    Some(Deviation {
        evidence: (strongest.evidence + further).min(WAYS_MAX),
        since: all.iter().map(|o| o.since).min().unwrap_or(strongest.since),
        count: strongest.counts.0,
        baseline: 0.0,
        observed: strongest.counts.0 as f64 / strongest.counts.1.max(1) as f64,
        unit: "1",
        attributes,
        events,
    })
}

impl Services {
    /// Everything that deviates at this step.
    pub(super) fn deviations(&self) -> BTreeMap<Key, Deviation> {
        let now = self.step;
        let mut all = BTreeMap::new();
        for (service, series) in &self.own.series {
            let evidence = series.cusum.evidence(now);
            if evidence >= ENDS {
                let key = (SignalKind::OwnTime, service.clone(), None, SmolStr::default());
                all.insert(key, durations(series, evidence));
            }
        }
        for ((from, to), series) in &self.gaps.series {
            let evidence = series.cusum.evidence(now);
            if evidence >= ENDS {
                let key = (SignalKind::NetworkGap, from.clone(), Some(to.clone()), SmolStr::default());
                all.insert(key, durations(series, evidence));
            }
        }
        for (service, odds) in self.ways.odd(now, ENDS) {
            let key = (SignalKind::TraceShape, service.clone(), None, SmolStr::default());
            all.extend(odd(&odds).map(|deviation| (key, deviation)));
        }
        for ((from, to), stopped) in &self.flows.stopped {
            let evidence = stopped.cusum.evidence(now);
            if evidence >= ENDS {
                let key = (SignalKind::CallsStopped, from.clone(), Some(to.clone()), SmolStr::default());
                let (count, _) = stopped.cusum.counts();
                let deviation = Deviation {
                    evidence,
                    since: stopped.cusum.since(),
                    count,
                    baseline: stopped.usual,
                    observed: stopped.now,
                    unit: "1/s",
                    ..Deviation::default()
                };
                all.insert(key, deviation);
            }
        }
        for ((from, to), edge) in &self.retries.edges {
            let evidence = edge.cusum.evidence(now);
            if evidence >= ENDS {
                let key = (SignalKind::CallsRepeated, from.clone(), Some(to.clone()), SmolStr::default());
                all.insert(key, repeated(edge, evidence));
            }
        }
        self.metered(&mut all);
        all
    }

    fn metered(&self, all: &mut BTreeMap<Key, Deviation>) {
        for ((service, sign, measure, label), found) in self.meters.deviations(self.step, ENDS) {
            let kind = match sign {
                Sign::CpuSaturated => SignalKind::CpuSaturated,
                Sign::CpuRaised => SignalKind::CpuRaised,
                Sign::Shifted => SignalKind::MetricShift,
            };
            let apart = match sign {
                Sign::Shifted => format_smolstr!("{}/{label}", measure.as_str()),
                _ => SmolStr::default(),
            };
            let mut attributes = vec![Attribute::new("measure", measure.as_str())];
            let is_much = kind == SignalKind::CpuRaised && found.now >= MUCH_CPU && found.usual > 0.0;
            attributes.extend(is_much.then(|| Attribute::new("times", rounded(found.now / found.usual))));
            attributes.push(Attribute::new("season", in_words_of_season(found.season).as_str()));
            if !label.is_empty() {
                attributes.push(Attribute::new("label", label.as_str()));
            }
            let deviation = Deviation {
                evidence: found.evidence * weight(sign, measure),
                since: found.since,
                count: 1,
                baseline: found.usual,
                observed: found.now,
                unit: unit(measure),
                attributes,
                events: vec![found.event],
            };
            let key = (kind, service.clone(), None, apart);
            // Labels that name series apart of one sign: the strongest stands for all.
            let stronger = all.get(&key).is_none_or(|known| deviation.evidence > known.evidence);
            if stronger {
                all.insert(key, deviation);
            }
        }
    }
}
