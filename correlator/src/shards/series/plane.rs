//! How the parts of a cluster fare, by the gauges of the scraper (`agents/src/collectors/scrape`). Thresholds follow the
//! public kubernetes, node and etcd mixins.

use tapio_schemas::{Entity, SignalKind};

use super::level::Threshold;
use super::{EpisodeKey, Finding, Meter, Sample, Series, Stands, episode_key, observation};

/// A gauge that is not told for so long is over: targets are asked every 15 s, or less often.
const IDLE_NS: u64 = 90_000_000_000;

/// When a measure is bad, and what that is called.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rule {
    kind: SignalKind,
    enter: f64,
    unit: &'static str,
}

/// The measure behind a gauge of the scraper.
pub(super) fn meter(name: &str) -> Option<Meter> {
    Some(match name {
        "k8s.api_server.request.p99" => Meter::ApiLatency,
        "k8s.api_server.refused.share" => Meter::ApiRefused,
        "k8s.api_server.failed.share" => Meter::ApiFailed,
        "etcd.wal_fsync.p99" | "etcd.backend_commit.p99" | "k8s.etcd.request.p99" => Meter::EtcdLatency,
        "etcd.db.share" => Meter::EtcdShare,
        "etcd.leader.changes" => Meter::EtcdLeaders,
        "k8s.scheduler.pending" => Meter::SchedulerPending,
        "k8s.workqueue.depth" => Meter::QueueDepth,
        "k8s.component.failing" => Meter::ComponentFailing,
        "dns.failed.share" => Meter::DnsFailed,
        "dns.request.p99" => Meter::DnsLatency,
        "dns.unknown.ratio" => Meter::DnsUnknown,
        "dns.broken" => Meter::DnsBroken,
        "system.network.conntrack.share" => Meter::ConntrackShare,
        "system.clock.offset" => Meter::ClockOffset,
        "kubelet.pleg.relist.p99" => Meter::PlegLatency,
        _ => return None,
    })
}

/// When it is bad; nothing for measures of other detectors.
pub(super) fn rule(meter: Meter) -> Option<Rule> {
    let (kind, enter, unit) = match meter {
        Meter::ApiLatency => (SignalKind::ApiSlow, 1.0, "s"),
        Meter::ApiRefused => (SignalKind::ApiRefuses, 0.05, "1"),
        Meter::ApiFailed => (SignalKind::ApiFails, 0.05, "1"),
        // The stricter of the two rules for its disk; a healthy one needs a few milliseconds.
        Meter::EtcdLatency => (SignalKind::EtcdSlow, 0.25, "s"),
        Meter::EtcdShare => (SignalKind::EtcdNearFull, 0.95, "1"),
        Meter::EtcdLeaders => (SignalKind::EtcdUnstable, 4.0, "{change}"),
        Meter::SchedulerPending => (SignalKind::Backlog, 100.0, "{pod}"),
        Meter::QueueDepth => (SignalKind::Backlog, 1000.0, "{item}"),
        Meter::ComponentFailing => (SignalKind::ComponentFails, 1.0, "1"),
        Meter::DnsFailed => (SignalKind::DnsFails, 0.05, "1"),
        Meter::DnsLatency => (SignalKind::DnsSlow, 1.0, "s"),
        // Each of the three suffixes of a cluster before the name itself.
        Meter::DnsUnknown => (SignalKind::DnsAmplified, 3.0, "1"),
        Meter::DnsBroken => (SignalKind::DnsFails, 1.0, "{event}"),
        Meter::ConntrackShare => (SignalKind::ConntrackNearFull, 0.75, "1"),
        Meter::ClockOffset => (SignalKind::ClockOff, 0.05, "s"),
        Meter::PlegLatency => (SignalKind::PlegSlow, 10.0, "s"),
        _ => return None,
    };
    Some(Rule { kind, enter, unit })
}

/// Takes a sample.
pub(super) fn take(series: &mut Series, sample: &Sample, out: &mut Vec<Finding>) {
    let Some(rule) = rule(sample.meter) else { return };
    // Twice in a row, but one panic is one too many, and the time in which leaders change is long already.
    let samples = if matches!(sample.meter, Meter::DnsBroken | Meter::EtcdLeaders) { 1 } else { 2 };
    let threshold = Threshold { enter: rule.enter, leave: 0.6 * rule.enter, samples };
    match series.level.next(sample.value, threshold) {
        Stands::Below => {}
        Stands::Left => out.push(Finding::Over(key(rule.kind, sample))),
        Stands::Above => {
            let mut seen = observation(rule.kind, sample);
            (seen.baseline, seen.unit, seen.topic) = (rule.enter, rule.unit, topic(sample));
            seen.peer = needed_part(sample);
            seen.idle_ns = IDLE_NS;
            // Half certain at the threshold, certain at twice of it. What fails fails.
            let is_plain = sample.meter == Meter::ComponentFailing;
            seen.strength = if is_plain { 1.0 } else { (0.5 * sample.value / rule.enter).clamp(0.3, 1.0) };
            let seen = if sample.label.is_empty() { seen } else { seen.with("which", sample.label.as_str()) };
            out.push(Finding::Seen(Box::new(seen)));
        }
    }
}

/// Checks of one part, its measures and its replicas are bad and over one by one.
fn topic(sample: &Sample) -> u64 {
    sample.series as u64
}

fn key(kind: SignalKind, sample: &Sample) -> EpisodeKey {
    episode_key(kind, &sample.entity, needed_part(sample).as_ref(), topic(sample))
}

/// The part that a check of another one asks: `etcd` and `etcd-readiness` of the API server fail when etcd does not answer.
fn needed_part(sample: &Sample) -> Option<Entity> {
    let is_of_etcd = sample.meter == Meter::ComponentFailing
        && matches!(sample.label.as_str(), "etcd" | "etcd-readiness")
        && sample.entity.object != "etcd";
    is_of_etcd.then(|| Entity::new("Component", "", "etcd", ""))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tapio_schemas::{EntityRef, EventId, UnixNanos};

    use super::*;
    use crate::config::SeriesConfig;
    use crate::shards::counters::Counters;
    use crate::shards::series::SeriesStore;

    fn sample(entity: &Arc<EntityRef>, name: &str, value: f64) -> Sample {
        Sample {
            at: UnixNanos(1_000_000_000_000),
            id: EventId(1),
            series: 1,
            owner: 1,
            entity: Arc::clone(entity),
            meter: Meter::of(name, |_| None).unwrap(),
            value,
            limit: 0.0,
            count: 0,
            row: u8::MAX,
            label: "".into(),
            place: 0,
        }
    }

    fn told(name: &str, labels: &[&str], values: &[f64]) -> Vec<String> {
        let entity =
            EntityRef { object_kind: "Component".into(), object: "etcd".into(), ..EntityRef::default() };
        let entity = Arc::new(entity.sealed());
        let mut store = SeriesStore::new(SeriesConfig::default());
        let (mut out, mut counters) = (Vec::new(), Counters::default());
        for (at, value) in values.iter().enumerate() {
            for (series, label) in labels.iter().enumerate() {
                // Only the first of them is bad.
                let value = if series == 0 { *value } else { 0.0 };
                let mut sample = sample(&entity, name, value);
                sample.at = UnixNanos(1_000_000_000_000 + at as u64 * 15_000_000_000);
                (sample.id, sample.series) = (EventId(at as u128 + 1), series as u128 + 1);
                sample.label = (*label).into();
                store.take(&sample, &mut out, &mut counters);
            }
        }
        let word = |finding: &Finding| match finding {
            Finding::Seen(seen) => format!("{} {}", seen.kind, seen.observed),
            Finding::Over(_) => "over".to_owned(),
        };
        out.iter().map(word).collect()
    }

    #[test]
    fn what_is_bad_twice_is_told_and_ends_well_below() {
        let slow = told("etcd.wal_fsync.p99", &[""], &[0.01, 0.6, 0.01, 0.5, 0.6, 0.2, 0.1, 0.1]);
        assert_eq!(slow, ["controlplane.etcd_slow 0.6", "controlplane.etcd_slow 0.2", "over"]);
        assert!(told("etcd.db.share", &[""], &[0.94, 0.94, 0.94]).is_empty());
        let amplified = told("dns.unknown.ratio", &[""], &[4.0, 4.2, 2.5, 1.0]);
        assert_eq!(amplified, ["dns.amplified 4.2", "dns.amplified 2.5", "over"]);
        assert_eq!(told("dns.broken", &[""], &[0.0, 1.0, 0.0]), ["dns.fails 1", "over"]);
    }

    #[test]
    fn one_check_that_is_well_does_not_end_another() {
        let told = told("k8s.component.failing", &["etcd", "ping"], &[1.0, 1.0, 1.0]);
        assert_eq!(told, ["controlplane.component_fails 1", "controlplane.component_fails 1"]);
    }

    #[test]
    fn a_check_of_another_part_is_about_both() {
        let peer = |object: &str, check: &str| {
            let entity =
                EntityRef { object_kind: "Component".into(), object: object.into(), ..Default::default() };
            let mut sample = sample(&Arc::new(entity.sealed()), "k8s.component.failing", 1.0);
            sample.label = check.into();
            let (mut series, mut out) = (Series::default(), Vec::new());
            (0..2).for_each(|_| take(&mut series, &sample, &mut out));
            let Some(Finding::Seen(seen)) = out.pop() else { panic!("{out:?}") };
            assert_eq!(seen.episode(), key(SignalKind::ComponentFails, &sample), "it ends as what it began");
            seen.peer.map(|peer| peer.name)
        };
        assert_eq!(peer("kube-apiserver", "etcd").as_deref(), Some("etcd"));
        assert_eq!(peer("kube-apiserver", "ping"), None);
        assert_eq!(peer("etcd", "etcd"), None);
    }
}
