//! How far the correlators are, as each tells it in the state bucket once a second.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tapio_runtime::bus::{Bus, BusError, Kv};
use tapio_runtime::clock::SharedClock;
use tapio_schemas::UnixNanos;
use tapio_schemas::proto::v1;
use tokio::sync::Mutex;

/// Answers of the last second are given again.
const CACHED_FOR: Duration = Duration::from_secs(1);
/// Longest wait for the bucket; then the last known state is given, which grows old by itself.
const READ_TIME_MAX: Duration = Duration::from_secs(2);
/// Clusters told in an answer.
const CLUSTERS_MAX: usize = 1024;
/// Gaps told per cluster.
const GAPS_MAX: usize = 16;

/// How far the correlator of one cluster is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClusterFreshness {
    /// Cluster, as a subject token.
    pub cluster: String,
    /// Event time up to which everything is judged.
    pub watermark: UnixNanos,
    /// Wall time since the watermark, in milliseconds.
    pub age_ms: u64,
    /// Holes in what it knows, in words.
    pub gaps: Vec<String>,
    /// When the correlator said so, by its wall clock.
    pub at: UnixNanos,
}

/// The value of `correlator.<cluster>.freshness`.
#[derive(Debug, Clone, Deserialize)]
struct Told {
    watermark: UnixNanos,
    gaps: Vec<String>,
    at: UnixNanos,
}

/// Reads the state bucket. Clones share what was read.
#[derive(Clone)]
pub struct Freshness {
    bus: Bus,
    clock: SharedClock,
    known: Arc<Mutex<Known>>,
}

#[derive(Default)]
struct Known {
    kv: Option<Kv>,
    read_at: Option<Duration>,
    clusters: Vec<(String, Told)>,
}

impl Freshness {
    /// Reads through this connection.
    pub fn new(bus: Bus, clock: SharedClock) -> Self {
        Self { bus, clock, known: Arc::default() }
    }

    /// All clusters whose correlator ever said how far it is, by name. Empty when none did.
    pub async fn read(&self) -> Vec<ClusterFreshness> {
        let mut known = self.known.lock().await;
        let now = self.clock.monotonic();
        if known.read_at.is_none_or(|read_at| now.saturating_sub(read_at) >= CACHED_FOR) {
            let reading = known.read(&self.bus);
            let outcome = tokio::select! {
                outcome = reading => outcome.map_err(|error| error.to_string()),
                () = self.clock.sleep(READ_TIME_MAX) => Err("no answer in time".to_owned()),
            };
            match outcome {
                Ok(clusters) => known.clusters = clusters,
                Err(error) => tracing::warn!(error, "how far the correlators are cannot be read"),
            }
            known.read_at = Some(self.clock.monotonic());
        }
        let now = UnixNanos(self.clock.now_unix_nanos());
        known.clusters.iter().map(|(cluster, told)| told.as_of(cluster, now)).collect()
    }
}

impl Known {
    async fn read(&mut self, bus: &Bus) -> Result<Vec<(String, Told)>, BusError> {
        let kv = match &self.kv {
            Some(kv) => kv.clone(),
            None => self.kv.insert(bus.kv().await?).clone(),
        };
        let mut clusters = Vec::new();
        for key in kv.keys().await? {
            let Some(cluster) = cluster_of(&key) else { continue };
            let Some(entry) = kv.get(&key).await? else { continue };
            match serde_json::from_slice::<Told>(&entry.value) {
                Ok(told) => clusters.push((cluster.to_owned(), told)),
                Err(error) => tracing::warn!(key, %error, "not a freshness"),
            }
            if clusters.len() == CLUSTERS_MAX {
                tracing::warn!(CLUSTERS_MAX, "the freshness of further clusters is left out");
                break;
            }
        }
        Ok(clusters)
    }
}

fn cluster_of(key: &str) -> Option<&str> {
    let cluster = key.strip_prefix("correlator.")?.strip_suffix(".freshness")?;
    (!cluster.is_empty() && !cluster.contains('.')).then_some(cluster)
}

impl Told {
    fn as_of(&self, cluster: &str, now: UnixNanos) -> ClusterFreshness {
        ClusterFreshness {
            cluster: cluster.to_owned(),
            watermark: self.watermark,
            age_ms: now.since(self.watermark) / 1_000_000,
            gaps: self.gaps.iter().take(GAPS_MAX).cloned().collect(),
            at: self.at,
        }
    }
}

impl From<&ClusterFreshness> for v1::ClusterFreshness {
    fn from(freshness: &ClusterFreshness) -> Self {
        Self {
            cluster: freshness.cluster.clone(),
            watermark_unix_nano: freshness.watermark.0,
            age_ms: freshness.age_ms,
            gaps: freshness.gaps.clone(),
            at_unix_nano: freshness.at.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_keys_of_a_freshness_are_read() {
        assert_eq!(cluster_of("correlator.prod.freshness"), Some("prod"));
        for other in ["correlator.prod.signals", "correlator..freshness", "correlator.a.b.freshness", "x"] {
            assert_eq!(cluster_of(other), None, "{other}");
        }
    }

    #[test]
    fn the_agreed_document_is_read() {
        let json = r#"{"watermark":"2026-01-01T00:00:00Z","gaps":["a"],"at":"2026-01-01T00:00:01Z"}"#;
        let told: Told = serde_json::from_str(json).unwrap();
        let fresh = told.as_of("prod", told.at.plus(1_000_000_000));
        assert_eq!((fresh.age_ms, fresh.gaps.len()), (2000, 1));
        assert!(serde_json::from_str::<Told>("{}").is_err());
    }
}
