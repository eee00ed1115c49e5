//! Certificates that end: exporters tell when, so the time is known exactly.
//!
//! Read from the names that exporters use: `…cert…expir…timestamp…` (cert-manager), `…cert_expiry` (blackbox exporter),
//! `…not_after` (x509 and ssl exporters), all in unix seconds, and what is left in seconds (`…expires_in_seconds`,
//! `…ttl_seconds`, `….cert_remaining`). Nothing reads the certificates themselves.

use tapio_schemas::signal::Forecast;
use tapio_schemas::{Score, SignalKind, UnixNanos};

use super::super::record::Sample;
use super::{Finding, Meter, Series, observation, seconds_to_nanos};
use crate::config::{SeriesConfig, nanos};

/// Unix seconds between which an end is believed: 2001 to 2286. Others are flags, counts or milliseconds.
const END_S: std::ops::Range<f64> = 1e9..1e10;
/// It ends at its time unless it is renewed, which nothing in the sample tells.
const PROBABILITY: f64 = 0.95;
/// Exporters may look once an hour: it is not over because they pause, ns.
const IDLE_NS_MIN: u64 = 600_000_000_000;

/// The measure behind a metric's name, when it is of a certificate. Called for each metric that is nothing else: without
/// allocation.
pub(super) fn meter(name: &str) -> Option<Meter> {
    let has = |word: &str| name.contains(word);
    if !(has("cert") || has("x509") || has("ssl") || has("tls")) {
        return None;
    }
    if has("not_after") || has("cert_expiry") || (has("expir") && has("timestamp")) {
        return Some(Meter::CertificateEnd);
    }
    (has("expires_in_seconds") || has("ttl_seconds") || has("cert_remaining"))
        .then_some(Meter::CertificateLeft)
}

/// Takes a sample of when a certificate ends.
pub(super) fn certificate(series: &Series, sample: &Sample, config: &SeriesConfig, out: &mut Vec<Finding>) {
    let now_s = sample.at.as_secs_f64();
    let end_s = match sample.meter {
        Meter::CertificateLeft => now_s + sample.value,
        _ => sample.value,
    };
    if !END_S.contains(&end_s) {
        return;
    }
    let end = UnixNanos(seconds_to_nanos(end_s));
    let left_s = end_s - now_s;
    let before = series.last.map(|(at, _)| at);
    let pace = before.map_or(0, |before| sample.at.since(before));
    let seen = |kind: SignalKind| {
        let mut seen = observation(kind, sample);
        // One exporter tells of many certificates.
        seen.topic = sample.series as u64;
        (seen.observed, seen.baseline, seen.unit) =
            (left_s, nanos(config.certificate_lead) as f64 / 1e9, "s");
        seen.idle_ns = (3 * pace).max(IDLE_NS_MIN);
        seen.with("place", sample.label.as_str()).with("left_s", left_s).with("end_unix_s", end_s)
    };
    let [expiring, expired] = [SignalKind::CertificateExpiring, SignalKind::CertificateExpired];
    if left_s <= 0.0 {
        let mut seen = seen(expired);
        // It ended between two samples, or long before anybody looked.
        seen.onset = if before.is_some_and(|before| before < end) { end } else { sample.at };
        out.push(Finding::Seen(Box::new(seen)));
        return;
    }
    out.push(Finding::Over(seen(expired).episode()));
    if left_s * 1e9 > nanos(config.certificate_lead) as f64 {
        out.push(Finding::Over(seen(expiring).episode()));
        return;
    }
    let mut seen = seen(expiring);
    seen.count = 0;
    // Nearly certain from the beginning, and the more urgent the nearer it is.
    seen.strength = 1.0 - 0.4 * left_s / seen.baseline;
    seen.forecast = Some(Forecast {
        scenario: "certificate_expired".into(),
        probability: Score::clamped(PROBABILITY),
        at: end,
        earliest: end,
        latest: end,
    });
    out.push(Finding::Seen(Box::new(seen)));
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tapio_schemas::payload::MetricData;
    use tapio_schemas::{Attribute, EntityRef, EventId, EventKind, Payload, Signal, UnifiedEvent};

    use super::super::super::shard_tests::{Sim, event, seconds};
    use super::*;

    const DAY_S: f64 = 86_400.0;

    fn samples(name: &str, count: u64, value: impl Fn(f64) -> f64) -> Vec<UnifiedEvent> {
        let entity = EntityRef {
            cluster: "c".into(),
            namespace: "ops".into(),
            service: "probe".into(),
            ..EntityRef::default()
        };
        let entity = Arc::new(entity.sealed());
        let sample = |i: u64| {
            let at = i as f64 * 60.0;
            let data = MetricData {
                name: name.into(),
                value: value(seconds(at).as_secs_f64()),
                attributes: vec![Attribute::new("instance", "shop.example:443")],
                ..MetricData::default()
            };
            let id = EventId::derive(seconds(at), name.as_bytes());
            event(EventKind::Metric, &entity, seconds(at), id, Payload::Metric(Box::new(data)))
        };
        (0..count).map(sample).collect()
    }

    fn signals(events: &[UnifiedEvent]) -> Vec<Signal> {
        let mut sim = Sim::new();
        sim.feed(events);
        sim.finish();
        sim.signals
    }

    fn end_after(second: f64) -> f64 {
        seconds(second).as_secs_f64()
    }

    #[test]
    fn names_of_exporters_are_known_and_others_are_not() {
        for name in [
            "certmanager_certificate_expiration_timestamp_seconds",
            "probe_ssl_earliest_cert_expiry",
            "x509_cert_not_after",
            "ssl_cert_not_after",
        ] {
            assert_eq!(meter(name), Some(Meter::CertificateEnd), "{name}");
        }
        for name in ["kubelet_certificate_manager_client_ttl_seconds", "httpcheck.tls.cert_remaining"] {
            assert_eq!(meter(name), Some(Meter::CertificateLeft), "{name}");
        }
        for name in [
            "x509_cert_expired",
            "x509_cert_not_before",
            "certmanager_certificate_renewal_timestamp_seconds",
            "apiserver_client_certificate_expiration_seconds",
            "redis_key_expire_timestamp_seconds",
        ] {
            assert_eq!(meter(name), None, "{name}");
        }
    }

    #[test]
    fn the_end_is_foretold_to_the_second_and_seen_when_it_has_come() {
        let end = end_after(1530.0);
        for (name, is_left) in [("x509_cert_not_after", false), ("x509_cert_expires_in_seconds", true)] {
            let told = signals(&samples(name, 40, |now| if is_left { end - now } else { end }));
            let first = told.iter().find(|s| s.kind == SignalKind::CertificateExpiring).expect("foretold");
            let forecast = first.forecast.as_ref().expect("a forecast");
            assert_eq!(first.last_seen, seconds(0.0), "{name}");
            assert!(forecast.at.0.abs_diff(seconds(1530.0).0) < 1_000_000, "{name}: {forecast:?}");
            let ended = told.iter().find(|s| s.kind == SignalKind::CertificateExpired).expect("ended");
            assert!(ended.onset.0.abs_diff(seconds(1530.0).0) < 1_000_000, "{name}: {:?}", ended.onset);
            assert_eq!(ended.attribute("place").and_then(|v| v.as_text()), Some("shop.example:443"));
        }
    }

    #[test]
    fn far_away_is_no_news_and_a_renewal_is_the_end_of_it() {
        let far = end_after(90.0 * DAY_S);
        assert_eq!(signals(&samples("x509_cert_not_after", 30, |_| far)).len(), 0);
        let near = end_after(3.0 * DAY_S);
        let renewed_at = end_after(900.0);
        let told =
            signals(&samples("x509_cert_not_after", 30, |now| if now < renewed_at { near } else { far }));
        let last = told.iter().rfind(|s| s.kind == SignalKind::CertificateExpiring).expect("foretold");
        assert!(last.ended, "{last:?}");
        assert!(told.iter().all(|s| s.kind != SignalKind::CertificateExpired));
    }

    #[test]
    fn what_is_no_time_is_not_taken_for_one() {
        for value in [0.0, 1.0, 1.7e12, f64::from(u32::MAX) * 10.0] {
            assert_eq!(signals(&samples("x509_cert_not_after", 5, |_| value)).len(), 0, "{value}");
        }
    }
}
