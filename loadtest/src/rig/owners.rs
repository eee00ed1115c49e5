//! Who owns what, as replicas say in their metrics, and since when another owner is heard.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Deserialize;
use tapio_runtime::bus::{Bus, BusError, OrderedConfig, OrderedConsumer, StartAt, Subscription};
use tapio_schemas::UnixNanos;
use tapio_schemas::names::{STREAM_SIGNALS, entity_query_subject, insights_fence_subject};
use tapio_schemas::wire::{ShardMark, SignalBatchView};
use tokio::task::JoinHandle;

use super::scrape::Sample;
use super::stack::CLUSTER;
use crate::error::LoadError;

/// Signal messages taken at a time, and how long to wait for more.
const READ: usize = 256;
const READ_WAIT: Duration = Duration::from_millis(5);
/// Between two questions to an owner that does not answer yet.
const ASK_EVERY: Duration = Duration::from_millis(5);
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// Of whom is asked: that there is an answer is what counts.
const NOBODY: &str = "nobody";

/// What one replica owns, with the epochs of its leases.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owners {
    /// Shards.
    pub shards: BTreeMap<u16, u64>,
    /// The incidents.
    pub incidents: Option<u64>,
}

impl Owners {
    /// From the metrics of a replica; the groups are those of [`tapio_schemas::names::lease_group`].
    pub fn of(samples: &[Sample], shards_group: &str, incidents_group: &str) -> Self {
        let mut owners = Self::default();
        let epochs = samples.iter().filter(|s| s.name == "tapio_lease_epoch" && s.value > 0.0);
        for sample in epochs {
            let (group, resource) = (sample.label("group"), sample.label("resource").unwrap_or_default());
            let epoch = sample.value as u64;
            if group == Some(incidents_group) {
                owners.incidents = Some(epoch);
            } else if let (true, Some(shard)) = (group == Some(shards_group), number(resource)) {
                owners.shards.insert(shard, epoch);
            }
        }
        owners
    }
}

/// `shard.7` → 7.
fn number(resource: &str) -> Option<u16> {
    resource.rsplit('.').next()?.parse().ok()
}

/// Since when an owner is heard, and the epoch of its lease.
pub type Taken = (Instant, u64);

/// One shard as it is heard.
#[derive(Debug, Default)]
struct Shard {
    epoch: u64,
    /// How far its owner has said.
    at: UnixNanos,
    /// How far the owners before had said.
    before: UnixNanos,
    taken: Option<Instant>,
}

impl Shard {
    fn mark(&mut self, mark: ShardMark, now: Instant) {
        if mark.epoch < self.epoch {
            return;
        }
        if mark.epoch > self.epoch {
            *self = Self { epoch: mark.epoch, before: self.before.max(self.at), ..Self::default() };
        }
        self.at = self.at.max(mark.at);
        if self.at >= self.before {
            self.taken.get_or_insert(now);
        }
    }
}

#[derive(Debug, Default)]
struct State {
    shards: BTreeMap<u16, Shard>,
    incidents: Option<Taken>,
}

/// Listens to owners as long as it lives.
pub struct Heard {
    state: Arc<Mutex<State>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Heard {
    /// Listens from now on to marks of shards and to fences of the incidents.
    ///
    /// # Errors
    /// When the streams are not there.
    pub async fn start(bus: &Bus) -> Result<Self, LoadError> {
        let state = Arc::new(Mutex::new(State::default()));
        let config = OrderedConfig { start: StartAt::Beginning, ..OrderedConfig::new(STREAM_SIGNALS) };
        let signals = bus.ordered_consumer(config).await?;
        let fences = bus.subscribe(&insights_fence_subject(CLUSTER)).await?;
        let tasks = vec![
            tokio::spawn(listen(signals, Arc::clone(&state))),
            tokio::spawn(ask(bus.clone(), fences, Arc::clone(&state))),
        ];
        Ok(Self { state, tasks })
    }

    /// Shards that are judged at least as far as ever before, and since when.
    pub fn shards(&self) -> BTreeMap<u16, Taken> {
        let state = lock(&self.state);
        let taken = |(shard, heard): (&u16, &Shard)| Some((*shard, (heard.taken?, heard.epoch)));
        state.shards.iter().filter_map(taken).collect()
    }

    /// Since when the newest owner of the incidents answers.
    pub fn incidents(&self) -> Option<Taken> {
        lock(&self.state).incidents
    }
}

impl Drop for Heard {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn listen(mut signals: OrderedConsumer, state: Arc<Mutex<State>>) {
    while let Ok(messages) = signals.next_batch(READ, READ_WAIT).await {
        let now = Instant::now();
        let mut state = lock(&state);
        for message in messages {
            // What does not decode tells of no shard: that is missed.
            let Ok(view) = SignalBatchView::check(&message.payload) else { continue };
            let section = view.to_section();
            for mark in section.marks.iter().filter(|_| !section.partial) {
                state.shards.entry(mark.shard).or_default().mark(*mark, now);
            }
        }
    }
}

/// What the fence of an owner says.
#[derive(Deserialize)]
struct Fence {
    epoch: u64,
}

/// An owner posts its fence first and reads then; it answers once it decides. The one before has ended by then.
async fn ask(bus: Bus, mut fences: Subscription, state: Arc<Mutex<State>>) {
    while let Some(message) = fences.next().await {
        let Ok(Fence { epoch }) = serde_json::from_slice(&message.payload) else { continue };
        loop {
            match bus.request(&entity_query_subject(CLUSTER), Bytes::from(NOBODY), ANSWER_MAX).await {
                Ok(_) => break,
                Err(BusError::Closed) => return,
                Err(_) => tokio::time::sleep(ASK_EVERY).await,
            }
        }
        let mut state = lock(&state);
        // An owner posts its fence again before a full stream would drop it.
        if state.incidents.is_none_or(|(_, known)| known < epoch) {
            state.incidents = Some((Instant::now(), epoch));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_taken_once_its_new_owner_is_as_far_as_the_one_before() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mark = |epoch, at| ShardMark { shard: 3, epoch, at: UnixNanos(at) };
        let mut shard = Shard::default();
        shard.mark(mark(5, 100), at(0));
        shard.mark(mark(5, 200), at(10));
        assert_eq!(shard.taken, Some(at(0)));
        shard.mark(mark(7, 150), at(20));
        assert_eq!((shard.epoch, shard.taken), (7, None), "it reads again what was said");
        shard.mark(mark(5, 300), at(30));
        assert_eq!(shard.taken, None, "who was the owner is no more");
        shard.mark(mark(7, 200), at(40));
        shard.mark(mark(7, 250), at(50));
        assert_eq!(shard.taken, Some(at(40)));
    }

    #[test]
    fn metrics_tell_what_a_replica_owns() {
        let epoch = |group: &str, resource: &str, value| Sample {
            name: "tapio_lease_epoch".to_owned(),
            labels: format!("group=\"{group}\",resource=\"{resource}\""),
            value,
        };
        let samples = [
            epoch("shards.c", "shard.7", 12.0),
            epoch("shards.c", "shard.8", 0.0),
            epoch("incidents.c", "incidents", 14.0),
            epoch("shards.other", "shard.9", 3.0),
        ];
        let owners = Owners::of(&samples, "shards.c", "incidents.c");
        assert_eq!(owners, Owners { shards: BTreeMap::from([(7, 12)]), incidents: Some(14) });
    }
}
