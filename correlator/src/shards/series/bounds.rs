//! Measures that exporters give under well-known names and that are sound only within bounds: shares of a limit, delays,
//! work that waits.
//!
//! Names are those of the Prometheus exporters and of the semantic conventions; thresholds follow the public alert rules for
//! nodes, Kubernetes and etcd, where these page somebody.

use foldhash::HashMap;
use smol_str::{SmolStr, format_smolstr};
use tapio_schemas::{SignalKind, UnixNanos};

use super::super::counters::Counters;
use super::super::record::{Sample, hash_parts};
use super::level::{Stands, Threshold};
use super::{Finding, Series, observation};

/// Pairs of a part and its whole that are kept; when full, the longest unread are forgotten and counted.
const PAIRS_MAX: usize = 16_384;
/// Observations of a histogram between two samples below which their mean says nothing.
const OBSERVATIONS_MIN: f64 = 10.0;
/// Times in a row that a bound must be passed.
const SAMPLES: u32 = 2;

/// How values under a name become those of its measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Of a whole that another name gives, or that comes with it.
    Part,
    /// What is left of a whole.
    Left,
    /// The whole of a part.
    Whole,
    /// As it is, whatever its sign.
    Level,
    /// A sum, per second.
    Rate,
    /// Mean of a histogram since the last sample, seconds.
    Mean,
}

struct Row {
    name: &'static str,
    measure: &'static str,
    role: Role,
    /// At or above this it is no longer sound.
    bound: f64,
    unit: &'static str,
}

const fn row(name: &'static str, measure: &'static str, role: Role, bound: f64, unit: &'static str) -> Row {
    Row { name, measure, role, bound, unit }
}

const ROWS: [Row; 25] = [
    row("apiserver_flowcontrol_rejected_requests_total", "api_rejections", Role::Rate, 0.5, "1/s"),
    row("apiserver_request_duration_seconds", "api_latency", Role::Mean, 1.0, "s"),
    row("apiserver_request_terminations_total", "api_rejections", Role::Rate, 0.5, "1/s"),
    row("etcd_disk_backend_commit_duration_seconds", "etcd_commit", Role::Mean, 0.25, "s"),
    row("etcd_disk_wal_fsync_duration_seconds", "etcd_fsync", Role::Mean, 0.1, "s"),
    row("etcd_mvcc_db_total_size_in_bytes", "etcd_size", Role::Part, 0.95, "1"),
    row("etcd_server_quota_backend_bytes", "etcd_size", Role::Whole, 0.0, ""),
    row("k8s.volume.inodes", "inodes", Role::Whole, 0.0, ""),
    row("k8s.volume.inodes.free", "inodes", Role::Left, 0.97, "1"),
    row("kubelet_volume_stats_inodes", "inodes", Role::Whole, 0.0, ""),
    row("kubelet_volume_stats_inodes_free", "inodes", Role::Left, 0.97, "1"),
    row("node_filefd_allocated", "open_files", Role::Part, 0.9, "1"),
    row("node_filefd_maximum", "open_files", Role::Whole, 0.0, ""),
    row("node_filesystem_files", "inodes", Role::Whole, 0.0, ""),
    row("node_filesystem_files_free", "inodes", Role::Left, 0.97, "1"),
    row("node_nf_conntrack_entries", "conntrack", Role::Part, 0.9, "1"),
    row("node_nf_conntrack_entries_limit", "conntrack", Role::Whole, 0.0, ""),
    row("node_timex_offset_seconds", "clock_offset", Role::Level, 0.05, "s"),
    row("process.unix.file_descriptor.count", "open_files", Role::Part, 0.9, "1"),
    row("process.unix.file_descriptor.limit", "open_files", Role::Whole, 0.0, ""),
    row("process_max_fds", "open_files", Role::Whole, 0.0, ""),
    row("process_open_fds", "open_files", Role::Part, 0.9, "1"),
    row("scheduler_pending_pods", "pending_pods", Role::Level, 100.0, "{pod}"),
    row("workqueue_depth", "queue_depth", Role::Level, 500.0, "{item}"),
    row("workqueue_longest_running_processor_seconds", "queue_stuck", Role::Level, 300.0, "s"),
];

/// The row of a name. Called for each metric that is nothing else: without allocation.
pub(super) fn find(name: &str) -> Option<u8> {
    let at = ROWS.binary_search_by(|row| row.name.cmp(name)).ok()?;
    u8::try_from(at).ok()
}

/// Whether the points under a name with these attributes are of the measure: watches last as long as they like, and what
/// the scheduler has looked at in vain waits for room, not for the scheduler.
pub(super) fn counts<'a>(row: u8, attribute: impl Fn(&str) -> Option<&'a str>) -> bool {
    match ROWS.get(usize::from(row)).map(|row| row.measure) {
        Some("api_latency") => !matches!(attribute("verb"), Some("WATCH" | "WATCHLIST" | "CONNECT")),
        Some("pending_pods") => {
            attribute("queue") != Some("unschedulable") && attribute("queue") != Some("gated")
        }
        _ => true,
    }
}

/// Parts and wholes by what they are of.
#[derive(Debug, Default)]
pub(super) struct Pairs(HashMap<u128, (f64, UnixNanos)>);

impl Pairs {
    /// Keeps the whole of a measure.
    fn keep(&mut self, key: u128, whole: f64, at: UnixNanos, counters: &mut Counters) {
        if self.0.len() >= PAIRS_MAX && !self.0.contains_key(&key) {
            let mut ages: Vec<UnixNanos> = self.0.values().map(|(_, at)| *at).collect();
            ages.sort_unstable();
            let oldest = ages[PAIRS_MAX / 8];
            self.0.retain(|_, (_, at)| *at > oldest);
            counters.evicted.series += (PAIRS_MAX - self.0.len()) as u64;
        }
        self.0.insert(key, (whole, at));
    }
}

/// Takes a sample of a bounded measure.
pub(super) fn bounded(
    series: &mut Series,
    pairs: &mut Pairs,
    sample: &Sample,
    out: &mut Vec<Finding>,
    counters: &mut Counters,
) {
    let Some(row) = ROWS.get(usize::from(sample.row)) else { return };
    let key = key_of(row, sample);
    if row.role == Role::Whole {
        return pairs.keep(key, sample.value, sample.at, counters);
    }
    let whole =
        if sample.limit > 0.0 { sample.limit } else { pairs.0.get(&key).map_or(0.0, |(whole, _)| *whole) };
    let Some(value) = value(series, row.role, sample, whole) else { return };
    let threshold = Threshold { enter: row.bound, leave: 0.9 * row.bound, samples: SAMPLES };
    let mut seen = observation(SignalKind::MetricBeyond, sample);
    seen.topic = key as u64;
    match series.level.next(value, threshold) {
        Stands::Below => {}
        // Others of the same deviation may still be beyond: it is over when none is any more.
        Stands::Left if is_one_of_many(row.role) => {}
        Stands::Left => out.push(Finding::Over(seen.episode())),
        Stands::Above => {
            (seen.observed, seen.baseline, seen.unit) = (value, row.bound, row.unit);
            seen.strength = (0.7 * value / row.bound).clamp(0.5, 1.0);
            let before = series.last.map_or(0, |(at, _)| sample.at.since(at));
            // It is not over because it is read once a minute.
            seen.idle_ns = (3 * before).max(180_000_000_000);
            let seen = seen
                .with("measure", row.measure)
                .with("metric", in_words(row).as_str())
                .with("value", value)
                .with("bound", row.bound)
                .with("place", sample.label.as_str());
            out.push(Finding::Seen(Box::new(seen)));
        }
    }
}

/// Series of one measure that stand alone (each queue, each verb) are one deviation.
fn is_one_of_many(role: Role) -> bool {
    matches!(role, Role::Level | Role::Rate | Role::Mean)
}

/// What its value is of.
fn in_words(row: &Row) -> SmolStr {
    match row.role {
        Role::Part | Role::Left => format_smolstr!("the share in use by {}", row.name),
        Role::Rate => format_smolstr!("{} per second", row.name),
        Role::Mean => format_smolstr!("the mean of {}", row.name),
        Role::Level | Role::Whole => row.name.into(),
    }
}

/// A part and its whole have the measure and all texts alike.
fn key_of(row: &Row, sample: &Sample) -> u128 {
    let (of, label) = match row.role {
        Role::Part | Role::Left | Role::Whole => (sample.place, ""),
        Role::Level | Role::Rate | Role::Mean => (sample.owner, sample.label.as_str()),
    };
    let [high, low] = [(of >> 64) as u64, of as u64].map(|half| half.to_string());
    hash_parts(&[row.measure, &high, &low, label])
}

/// Value of the measure; `None` while it cannot be known.
fn value(series: &mut Series, role: Role, sample: &Sample, whole: f64) -> Option<f64> {
    match role {
        Role::Part => (whole > 0.0).then(|| sample.value / whole),
        Role::Left => (whole > 0.0).then(|| 1.0 - sample.value / whole),
        Role::Level => Some(sample.value.abs()),
        Role::Rate => {
            let (at, before) = series.last?;
            let seconds = sample.at.since(at) as f64 / 1e9;
            // A fall is a restart from zero.
            let grown = if sample.value >= before { sample.value - before } else { sample.value };
            (seconds > 0.0).then(|| grown / seconds)
        }
        Role::Mean => {
            // The sum of all observations so far, kept in the place of a limit, which a histogram has not.
            let (sum, count) = (sample.value * sample.count as f64, sample.count as f64);
            let (sum_before, count_before) = std::mem::replace(&mut series.observed, (sum, count));
            let more = count - count_before;
            (series.last.is_some() && more >= OBSERVATIONS_MIN).then(|| (sum - sum_before) / more)
        }
        Role::Whole => None,
    }
}

#[cfg(test)]
#[path = "bounds_tests.rs"]
mod tests;
