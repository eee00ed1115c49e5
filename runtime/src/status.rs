//! A process's word of itself in the state bucket, so that `tapio status` needs NATS and nothing else; and its troubles as
//! events about Tapio itself.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use bytes::Bytes;
use tapio_schemas::ProducerId;
use tapio_schemas::names::{events_subject, status_key};
use tapio_schemas::status::{EVERY, TTL, Word};
use tapio_schemas::trouble::{REPEAT, Trouble};
use tapio_schemas::wire::EventBatch;
use tapio_schemas::{UnixNanos, names};

use crate::bus::{Bus, BusError, ConnectionState, Headers, Kv, KvEvent};
use crate::supervise::{WorkerContext, WorkerResult};

/// Longest wait for the acknowledgement of a trouble; it is told again anyway.
const TROUBLE_WAIT: Duration = Duration::from_secs(2);

/// Who speaks.
#[derive(Debug, Clone)]
pub struct Speaker {
    /// `agent`, `correlator` or `storage`.
    pub role: &'static str,
    /// Cluster, `None` for what serves all of them: its troubles are told in each that has a correlator.
    pub cluster: Option<String>,
    /// Name among those of its role.
    pub name: String,
}

impl Speaker {
    fn key(&self) -> String {
        status_key(self.role, self.cluster.as_deref().unwrap_or("all"), &self.name)
    }
}

/// Writes what `read` gives, every [`EVERY`], until the context is shut down; then once more, so that the last word is the
/// end of the run. While NATS is away nothing is written and nothing waits.
///
/// # Errors
/// None: a word that is not heard is said again.
pub async fn tell<W: Word>(
    bus: Bus,
    speaker: Speaker,
    read: impl Fn() -> W + Send,
    context: WorkerContext,
) -> WorkerResult {
    let mut voice = Voice::new(bus, speaker, context.clock.now_unix_nanos());
    loop {
        context.progress.tick();
        if voice.bus.state() == ConnectionState::Connected {
            let word = read();
            let (json, troubles, at) = (serde_json::to_vec(&word)?, word.troubles(), word.at());
            drop(word);
            if let Err(error) = voice.say(json, troubles, at, context.clock.monotonic()).await {
                tracing::debug!(role = voice.speaker.role, %error, "the status is not told");
                voice.bucket = None;
            }
        }
        if context.shutdown.is_triggered() {
            return Ok(());
        }
        tokio::select! {
            () = context.clock.sleep(EVERY) => {}
            () = context.shutdown.wait() => {}
        }
    }
}

struct Voice {
    bus: Bus,
    speaker: Speaker,
    key: String,
    bucket: Option<Kv>,
    /// Numbers the events it publishes, by cluster and shard.
    batches: HashMap<(String, u16), EventBatch>,
    producer: ProducerId,
    run: u32,
    told_at: Option<Duration>,
}

impl Voice {
    fn new(bus: Bus, speaker: Speaker, now_unix_nanos: u64) -> Self {
        let key = speaker.key();
        let producer = ProducerId(xxhash_rust::xxh3::xxh3_64(key.as_bytes()));
        // Seconds fit until 2106; a later run has a higher number.
        let run = u32::try_from(now_unix_nanos / 1_000_000_000).unwrap_or(u32::MAX);
        Self { bus, speaker, key, bucket: None, batches: HashMap::new(), producer, run, told_at: None }
    }

    async fn say(
        &mut self,
        json: Vec<u8>,
        troubles: Vec<Trouble>,
        at: UnixNanos,
        now: Duration,
    ) -> Result<(), BusError> {
        let bucket = match &self.bucket {
            Some(bucket) => bucket.clone(),
            None => self.bucket.insert(self.bus.kv().await?.with_timeout(EVERY)).clone(),
        };
        bucket.put_with_ttl(&self.key, Bytes::from(json), TTL).await?;
        if troubles.is_empty() || self.told_at.is_some_and(|told| now.saturating_sub(told) < REPEAT) {
            return Ok(());
        }
        self.told_at = Some(now);
        let clusters = match &self.speaker.cluster {
            Some(cluster) => BTreeSet::from([cluster.clone()]),
            None => clusters(&bucket).await?,
        };
        for cluster in clusters {
            for trouble in &troubles {
                self.publish(&cluster, trouble, at).await?;
            }
        }
        Ok(())
    }

    async fn publish(&mut self, cluster: &str, trouble: &Trouble, at: UnixNanos) -> Result<(), BusError> {
        let event = trouble.event(cluster, at);
        tracing::warn!(part = trouble.part, kind = trouble.kind.as_str(), "{}", trouble.says);
        let shard = event.key().shard();
        let (producer, run) = (self.producer, self.run);
        let batch = self.batches.entry((cluster.to_owned(), shard));
        let batch = batch.or_insert_with(|| EventBatch::new(producer, run, shard));
        batch.push(event);
        // One event with a few texts always encodes.
        let Ok(bytes) = batch.finish(UnixNanos(0)) else { return Ok(()) };
        let subject = events_subject(cluster, shard);
        self.bus.publish_within(TROUBLE_WAIT, &subject, None, Headers::new(), bytes.into()).await.map(drop)
    }
}

/// Clusters that a correlator speaks of.
async fn clusters(bucket: &Kv) -> Result<BTreeSet<String>, BusError> {
    let mut clusters = BTreeSet::new();
    let mut watch = bucket.watch(&format!("{}.correlator", names::KEY_STATUS_PREFIX)).await?;
    loop {
        match watch.next().await? {
            KvEvent::Put { key, .. } => clusters.extend(key.split('.').nth(2).map(str::to_owned)),
            KvEvent::Gone { .. } => {}
            KvEvent::Current => return Ok(clusters),
        }
    }
}
