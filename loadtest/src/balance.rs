//! `produced = processed + dropped{stage,reason} + in flight`, from both ends.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::rig::scrape::{Sample, sum};

/// The counts at the end of a load.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Balance {
    /// Events made.
    pub produced: u64,
    /// Events that the event stream acknowledged.
    pub acknowledged: u64,
    /// Events that the correlator read.
    pub read: u64,
    /// Of these, used.
    pub processed: u64,
    /// Of these, not used, by `stage.reason`.
    pub dropped: BTreeMap<String, u64>,
    /// Batches refused, by reason: their events are in the dead-letter stream and count as in flight.
    pub rejected_batches: u64,
    /// Batches read twice.
    pub duplicate_batches: u64,
    /// Events that the correlator missed in producers' numbers.
    pub gap_events: u64,
}

impl Balance {
    /// From what was published and the correlators' metrics.
    pub fn new(produced: u64, acknowledged: u64, samples: &[Sample]) -> Self {
        let mut dropped = BTreeMap::new();
        for sample in samples.iter().filter(|s| s.name == "tapio_correlator_events_dropped_total") {
            let reason = sample.label("reason").unwrap_or("unknown");
            if sample.value > 0.0 {
                *dropped.entry(format!("correlator.{reason}")).or_default() += sample.value as u64;
            }
        }
        if acknowledged < produced {
            dropped.insert("publish.unacknowledged".to_owned(), produced - acknowledged);
        }
        let read = sum(samples, "tapio_correlator_events_total");
        let unused: u64 =
            dropped.iter().filter(|(stage, _)| stage.starts_with("correlator.")).map(|(_, n)| n).sum();
        Self {
            produced,
            acknowledged,
            read,
            processed: read.saturating_sub(unused),
            dropped,
            rejected_batches: sum(samples, "tapio_correlator_batches_rejected_total"),
            duplicate_batches: sum(samples, "tapio_correlator_batches_duplicate_total"),
            gap_events: sum(samples, "tapio_correlator_gap_events_total"),
        }
    }

    /// Produced and neither processed nor dropped; negative when more came out than went in.
    pub fn in_flight(&self) -> i64 {
        let gone = self.processed + self.dropped.values().sum::<u64>();
        self.produced as i64 - gone as i64
    }

    /// Exact, with nothing left on its way.
    pub fn is_exact(&self) -> bool {
        self.in_flight() == 0
            && self.acknowledged == self.produced
            && self.rejected_batches == 0
            && self.duplicate_batches == 0
            && self.gap_events == 0
    }
}

impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} produced = {} processed", self.produced, self.processed)?;
        for (reason, count) in &self.dropped {
            write!(f, " + {count} dropped ({reason})")?;
        }
        write!(f, " + {} in flight", self.in_flight())?;
        for (what, count) in [
            ("batches refused", self.rejected_batches),
            ("batches read twice", self.duplicate_batches),
            ("events missing in sequences", self.gap_events),
        ] {
            if count > 0 {
                write!(f, "; {count} {what}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(name: &str, labels: &str, value: f64) -> Sample {
        Sample { name: format!("tapio_correlator_{name}_total"), labels: labels.to_owned(), value }
    }

    #[test]
    fn what_is_dropped_is_accounted_for_and_what_is_missing_is_not() {
        let samples = [sample("events", "", 90.0), sample("events_dropped", "reason=\"too_old\"", 5.0)];
        let exact = Balance::new(90, 90, &samples);
        assert_eq!((exact.processed, exact.in_flight()), (85, 0));
        assert!(exact.is_exact(), "{exact}");
        let missing = Balance::new(100, 100, &samples);
        assert_eq!(missing.in_flight(), 10);
        assert!(!missing.is_exact());
        let doubled = Balance::new(80, 80, &samples);
        assert!(doubled.in_flight() < 0 && !doubled.is_exact());
        let refused = [samples[0].clone(), sample("batches_rejected", "reason=\"magic\"", 1.0)];
        assert!(!Balance::new(90, 90, &refused).is_exact());
    }
}
