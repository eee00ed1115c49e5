//! How far the correlators are, as each tells it in the state bucket once a second, and whether their
//! agents are heard: a watermark follows the clock while no event comes, also when no agent is left.
//!
//! What a correlator said goes away by itself some time after its last word (`correlator.forget_after`), so that a cluster
//! that was given another name is forgotten. One whose correlator has stopped is not, as long as its agents are heard.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::{join_all, try_join_all};
use futures::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};
use tapio_runtime::bus::{Bus, BusError, Kv, OrderedConfig, StartAt};
use tapio_runtime::clock::SharedClock;
use tapio_schemas::UnixNanos;
use tapio_schemas::names::{KEY_STATUS_PREFIX, entity_query_subject};
use tapio_schemas::proto::v1;
use tokio::sync::Mutex;

/// Answers of the last second are given again.
const CACHED_FOR: Duration = Duration::from_secs(1);
/// Longest wait for the bucket; then the last known state is given, which grows old by itself.
const READ_TIME_MAX: Duration = Duration::from_secs(2);
/// A cluster of which no event came for so long is silent. An agent that has nothing to tell still
/// samples its machine every few seconds.
pub const SILENT_AFTER: Duration = Duration::from_secs(60);
/// How long to wait for an event that should be in the stream.
const EVENT_WAIT: Duration = Duration::from_millis(500);
/// Longest wait for a correlator that is asked whether it has heard of something.
const HEARD_TIME_MAX: Duration = Duration::from_secs(2);
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
    /// When the correlator said so, by its wall clock; the epoch when agents are heard and no correlator says anything.
    pub at: UnixNanos,
    /// No event came from its agents for [`SILENT_AFTER`].
    pub silent: bool,
}

/// The value of `correlator.<cluster>.freshness`.
#[derive(Debug, Clone, Default, Deserialize)]
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
    clusters: Vec<Heard>,
}

struct Heard {
    cluster: String,
    told: Told,
    silent: bool,
}

impl Freshness {
    /// Reads through this connection.
    pub fn new(bus: Bus, clock: SharedClock) -> Self {
        Self { bus, clock, known: Arc::default() }
    }

    /// All clusters whose correlator said how far it is, or whose agents are heard, by name.
    pub async fn read(&self) -> Vec<ClusterFreshness> {
        let mut known = self.known.lock().await;
        let now = self.clock.monotonic();
        if known.read_at.is_none_or(|read_at| now.saturating_sub(read_at) >= CACHED_FOR) {
            let since = UnixNanos(self.clock.now_unix_nanos()).minus(SILENT_AFTER.as_nanos() as u64);
            let reading = known.read(&self.bus, since);
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
        known.clusters.iter().map(|heard| heard.as_of(now)).collect()
    }
}

/// Answer of a correlator to the question whether it has heard of something.
#[derive(Debug, Deserialize)]
struct HeardOf {
    heard: bool,
}

impl Freshness {
    /// Whether the correlators of these clusters know of an entity; `None` when one that may know does not
    /// answer in time.
    pub async fn has_heard_of(&self, clusters: &[ClusterFreshness], entity: &str) -> Option<bool> {
        let asking = clusters.iter().map(async |cluster| {
            let subject = entity_query_subject(&cluster.cluster);
            let asked = self.bus.request(&subject, Bytes::from(entity.to_owned()), HEARD_TIME_MAX).await;
            serde_json::from_slice::<HeardOf>(&asked.ok()?).ok().map(|answer| answer.heard)
        });
        let answers = join_all(asking).await;
        if answers.contains(&Some(true)) {
            return Some(true);
        }
        (!answers.is_empty() && answers.iter().all(Option::is_some)).then_some(false)
    }
}

impl Known {
    async fn read(&mut self, bus: &Bus, since: UnixNanos) -> Result<Vec<Heard>, BusError> {
        let kv = match &self.kv {
            Some(kv) => kv.clone(),
            None => self.kv.insert(bus.kv().await?).clone(),
        };
        let (mut told, mut with_agents) = (BTreeMap::new(), BTreeSet::new());
        for key in kv.keys().await? {
            if let Some(cluster) = cluster_of_agent(&key) {
                with_agents.insert(cluster.to_owned());
            }
            let Some(cluster) = cluster_of(&key) else { continue };
            let Some(entry) = kv.get(&key).await? else { continue };
            match serde_json::from_slice::<Told>(&entry.value) {
                Ok(fresh) => drop(told.insert(cluster.to_owned(), Some(fresh))),
                Err(error) => tracing::warn!(key, %error, "not a freshness"),
            }
        }
        for cluster in with_agents {
            told.entry(cluster).or_default();
        }
        if told.len() > CLUSTERS_MAX {
            tracing::warn!(CLUSTERS_MAX, "the freshness of further clusters is left out");
        }
        let listening = told.into_iter().take(CLUSTERS_MAX).map(async |(cluster, told)| {
            let silent = !is_heard(bus, &cluster, since).await?;
            // Agents may have been here once, or be elsewhere now; those that are heard speak to nobody.
            Ok::<_, BusError>(match told {
                None if silent => None,
                told => Some(Heard { cluster, told: told.unwrap_or_default(), silent }),
            })
        });
        Ok(try_join_all(listening).await?.into_iter().flatten().collect())
    }
}

/// True when an event of the cluster came since then, in any of the streams that hold events.
async fn is_heard(bus: &Bus, cluster: &str, since: UnixNanos) -> Result<bool, BusError> {
    let streams = bus.events_streams();
    let listening = streams.iter().map(async |stream| {
        let config = OrderedConfig {
            filters: stream.filters(cluster),
            start: StartAt::UnixNanos(since.0),
            batch: 1,
            ..OrderedConfig::new(&stream.name)
        };
        let mut events = bus.ordered_consumer(config).await?;
        Ok(!events.next_batch(1, EVENT_WAIT).await?.is_empty())
    });
    let mut listening: FuturesUnordered<_> = listening.collect();
    while let Some(heard) = listening.next().await {
        if heard? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn cluster_of(key: &str) -> Option<&str> {
    let cluster = key.strip_prefix("correlator.")?.strip_suffix(".freshness")?;
    (!cluster.is_empty() && !cluster.contains('.')).then_some(cluster)
}

/// Of `status.agent.<cluster>.<name>`.
fn cluster_of_agent(key: &str) -> Option<&str> {
    let (cluster, _) = key.strip_prefix(KEY_STATUS_PREFIX)?.strip_prefix(".agent.")?.split_once('.')?;
    Some(cluster)
}

impl Heard {
    fn as_of(&self, now: UnixNanos) -> ClusterFreshness {
        let Self { cluster, told, silent } = self;
        ClusterFreshness {
            cluster: cluster.clone(),
            watermark: told.watermark,
            age_ms: now.since(told.watermark) / 1_000_000,
            gaps: told.gaps.iter().take(GAPS_MAX).cloned().collect(),
            at: told.at,
            silent: *silent,
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
            silent: freshness.silent,
        }
    }
}

impl From<&v1::ClusterFreshness> for ClusterFreshness {
    fn from(told: &v1::ClusterFreshness) -> Self {
        Self {
            cluster: told.cluster.clone(),
            watermark: UnixNanos(told.watermark_unix_nano),
            age_ms: told.age_ms,
            gaps: told.gaps.clone(),
            at: UnixNanos(told.at_unix_nano),
            silent: told.silent,
        }
    }
}

#[cfg(test)]
mod tests {
    use tapio_schemas::names::status_key;

    use super::*;

    #[test]
    fn only_the_keys_of_a_freshness_are_read() {
        assert_eq!(cluster_of("correlator.prod.freshness"), Some("prod"));
        for other in ["correlator.prod.signals", "correlator..freshness", "correlator.a.b.freshness", "x"] {
            assert_eq!(cluster_of(other), None, "{other}");
        }
        assert_eq!(cluster_of_agent(&status_key("agent", "prod", "n.1")), Some("prod"));
        assert_eq!(cluster_of_agent(&status_key("storage", "prod", "a")), None);
    }

    #[test]
    fn the_agreed_document_is_read() {
        let json = r#"{"watermark":"2026-01-01T00:00:00Z","gaps":["a"],"at":"2026-01-01T00:00:01Z"}"#;
        let told: Told = serde_json::from_str(json).unwrap();
        let now = told.at.plus(1_000_000_000);
        let fresh = Heard { cluster: "prod".into(), told, silent: true }.as_of(now);
        assert_eq!((fresh.age_ms, fresh.gaps.len()), (2000, 1));
        assert!(serde_json::from_str::<Told>("{}").is_err());
    }
}
