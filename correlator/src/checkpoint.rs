//! What stage two keeps in the key-value bucket: where to read on, what outlives the reading again, how fresh it is.
//!
//! | key | value |
//! |---|---|
//! | `correlator.<cluster>.signals` | JSON: low water, time decided up to, how far each shard was heard before it |
//! | `correlator.<cluster>.changes` | a message of signals (`schemas/src/wire`): changes that may be the reason of what comes |
//! | `correlator.<cluster>.machines` | JSON: machines that tell kernel events |
//! | `correlator.<cluster>.budgets` | JSON: the last two snapshots of the error budgets (`slo/kept.rs`); the standing says which is its own |
//! | `correlator.<cluster>.freshness` | JSON: `{"watermark","gaps","at"}`, each second; gone by itself `correlator.forget_after` later |
//! | `priors.<cluster>` | JSON: what outcomes say of the causes ([`PriorHistory`]); the store of findings writes it |

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tapio_runtime::bus::{Bus, BusError, Kv};
use tapio_schemas::learning::PriorHistory;
use tapio_schemas::names::{priors_key, token};
use tapio_schemas::wire::{SignalBatchView, SignalSection, encode_signals};
use tapio_schemas::{Entity, ProducerId, Signal, UnixNanos};

use crate::aligned::Aligned;
use crate::fence::Heard;
use crate::kept_key::KeptKey;
use crate::low_water::LowWater;
use crate::order::Told;
use crate::slo::{KeptBudgets, Snapshot};

/// Most bytes of one kept value: below the bucket's limit of 1 MiB. Above it the older half of the changes is left out.
const VALUE_BYTES_MAX: usize = 900 << 10;

/// Where a restart goes on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Standing {
    /// Where to read on.
    #[serde(flatten)]
    pub mark: LowWater,
    /// Event time up to which every finding is published and acknowledged.
    #[serde(default)]
    pub decided: UnixNanos,
    /// Up to when the error budgets that belong to it were counted.
    #[serde(default)]
    pub budgets: UnixNanos,
    /// How far each shard was heard before the mark's sequence.
    #[serde(default)]
    pub heard: Vec<Heard>,
    /// How far each worker of stage one was heard before it.
    #[serde(default)]
    pub told: Vec<Told>,
}

/// What outlives the reading again.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// Changes.
    pub changes: Vec<Signal>,
    /// Machines that tell kernel events.
    pub machines: Vec<Entity>,
}

/// What is kept at a time. The memory is kept before the mark passes what it is about.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// Where a restart goes on.
    pub standing: Standing,
    /// The memory, when it has changed.
    pub memory: Option<Memory>,
    /// How the error budgets stood where a restart goes on, when there are any.
    pub budgets: Option<Snapshot>,
}

impl Checkpoint {
    /// This one instead of an older one that is not kept yet.
    pub fn after(self, older: Option<Self>) -> Self {
        Self { memory: self.memory.or(older.and_then(|older| older.memory)), ..self }
    }
}

/// How fresh the verdicts are.
#[derive(Debug, Clone, Default)]
pub struct Fresh {
    /// Event time that all shards have passed.
    pub watermark: UnixNanos,
    /// Newest holes, in words.
    pub gaps: Vec<String>,
}

#[derive(Serialize)]
struct FreshJson<'a> {
    watermark: UnixNanos,
    gaps: &'a [String],
    at: UnixNanos,
}

/// What was kept.
#[derive(Debug, Default)]
pub struct Kept {
    /// Where to go on; `None` when nothing was kept.
    pub standing: Option<Standing>,
    /// Changes.
    pub changes: Vec<Signal>,
    /// Machines.
    pub machines: Vec<Entity>,
    /// Error budgets.
    pub budgets: Option<KeptBudgets>,
}

/// The keys of one cluster.
pub struct StageTwoStore {
    kv: Kv,
    standing: KeptKey,
    changes: KeptKey,
    machines: KeptKey,
    budgets: KeptKey,
    /// The last one kept: another process may still go on from it.
    snapshot: Option<Snapshot>,
    freshness: String,
    priors: String,
}

impl StageTwoStore {
    /// Takes the keys over from the owner before, and says what it kept. What cannot be read counts as not kept: reading
    /// more is always safe.
    ///
    /// # Errors
    /// [`BusError::Conflict`] when another owner keeps writing, [`BusError::Kv`].
    pub async fn take_over(bus: &Bus, cluster: &str) -> Result<(Self, Kept), BusError> {
        let key = |what: &str| format!("correlator.{}.{what}", token(cluster));
        let kv = bus.kv().await?;
        // The mark last: once it is ours, nobody changes what belongs to it.
        let (changes, machines, budgets) = futures::try_join!(
            KeptKey::take(&kv, key("changes")),
            KeptKey::take(&kv, key("machines")),
            KeptKey::take(&kv, key("budgets")),
        )?;
        let standing = KeptKey::take(&kv, key("signals")).await?;
        let stands: Option<Standing> = serde_json::from_slice(standing.value()).ok();
        let own = stands.as_ref().and_then(|stands| own_budgets(budgets.value(), stands.budgets));
        let snapshot = own.as_ref().map(KeptBudgets::snapshot);
        let kept = Kept {
            standing: stands,
            budgets: own,
            changes: decoded(changes.value()),
            machines: serde_json::from_slice(machines.value()).unwrap_or_default(),
        };
        Ok((
            Self {
                kv,
                standing,
                changes,
                machines,
                budgets,
                snapshot,
                freshness: key("freshness"),
                priors: priors_key(cluster),
            },
            kept,
        ))
    }

    /// What outcomes say of the causes. What cannot be read as such says nothing.
    ///
    /// # Errors
    /// [`BusError::Kv`].
    pub async fn priors(&self) -> Result<PriorHistory, BusError> {
        let entry = self.kv.get(&self.priors).await?;
        Ok(entry.and_then(|entry| serde_json::from_slice(&entry.value).ok()).unwrap_or_default())
    }

    /// Keeps a checkpoint: the memory first.
    ///
    /// # Errors
    /// [`BusError::Conflict`] when another owner has taken over, [`BusError::Kv`] when it must be tried again.
    pub async fn save(&mut self, checkpoint: &Checkpoint) -> Result<(), BusError> {
        if let Some(memory) = &checkpoint.memory {
            self.changes.set(encoded(memory.changes.clone())).await?;
            let machines = serde_json::to_vec(&memory.machines).unwrap_or_default();
            self.machines.set(Bytes::from(machines)).await?;
        }
        if let Some(snapshot) = checkpoint.budgets.as_ref().filter(|new| self.snapshot.as_ref() != Some(*new))
        {
            // The one before stays until the standing has moved on.
            self.budgets.set(both(self.snapshot.as_ref(), snapshot)).await?;
        }
        let standing = serde_json::to_vec(&checkpoint.standing).unwrap_or_default();
        self.standing.set(Bytes::from(standing)).await?;
        self.snapshot = checkpoint.budgets.clone();
        Ok(())
    }

    /// Tells how fresh the verdicts are; `at`: now, by the clock. Without another word it is gone after `ttl`: a cluster
    /// that was given another name must not be waited for.
    pub async fn tell_fresh(&self, fresh: &Fresh, at: UnixNanos, ttl: Duration) -> Result<(), BusError> {
        let json = FreshJson { watermark: fresh.watermark, gaps: &fresh.gaps, at };
        let text = serde_json::to_vec(&json).unwrap_or_default();
        self.kv.put_with_ttl(&self.freshness, Bytes::from(text), ttl).await.map(|_| ())
    }
}

fn both(before: Option<&Snapshot>, now: &Snapshot) -> Bytes {
    let mut value = b"[".to_vec();
    for snapshot in before.into_iter().chain([now]) {
        if value.len() > 1 {
            value.push(b',');
        }
        value.extend_from_slice(&snapshot.json);
    }
    value.push(b']');
    Bytes::from(value)
}

fn own_budgets(value: &[u8], counted: UnixNanos) -> Option<KeptBudgets> {
    let kept: Vec<KeptBudgets> = serde_json::from_slice(value).ok()?;
    kept.into_iter().find(|kept| kept.counted == counted)
}

fn encoded(mut changes: Vec<Signal>) -> Bytes {
    loop {
        let section = SignalSection { signals: changes.clone(), ..SignalSection::default() };
        match encode_signals(ProducerId(0), 0, 0, &section) {
            Ok(bytes) if bytes.len() <= VALUE_BYTES_MAX => return Bytes::from(bytes),
            _ if changes.is_empty() => return Bytes::new(),
            _ => drop(changes.drain(..changes.len().div_ceil(2))),
        }
    }
}

fn decoded(bytes: &[u8]) -> Vec<Signal> {
    let mut aligned = Aligned::default();
    let batch = SignalBatchView::check(aligned.of(bytes));
    batch.map(|batch| batch.to_section().signals).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use tapio_schemas::{Attribute, EntityRef, SignalKind};

    fn change(number: u64, text: &str) -> Signal {
        let entity = EntityRef { namespace: "shop".into(), service: "api".into(), ..EntityRef::default() };
        let entity = Arc::new(entity.sealed());
        let mut change = Signal::new(SignalKind::ImageChanged, entity, None, UnixNanos(number));
        change.attributes = vec![Attribute::new("image_new", format!("{text}{number}").as_str())];
        change
    }

    #[test]
    fn changes_are_kept_with_all_they_say_and_garbage_is_none() {
        let changes: Vec<Signal> = (0..3).map(|n| change(n, "api:")).collect();
        // A baseline that is no number must survive.
        assert!(changes[0].baseline.is_nan());
        let read = decoded(&encoded(changes.clone()));
        assert_eq!(format!("{read:?}"), format!("{changes:?}"));
        assert!(decoded(b"garbage").is_empty() && decoded(b"").is_empty());
    }

    #[test]
    fn a_standing_finds_its_own_budgets_and_the_next_ones_are_there_already() {
        let [first, second, third] = [5, 7, 9].map(|at| {
            let mut kept = KeptBudgets::default();
            kept.counted = UnixNanos(at);
            kept.snapshot()
        });
        let value = both(Some(&first), &second);
        let own = |value: &[u8], at| own_budgets(value, UnixNanos(at)).map(|kept| kept.snapshot());
        assert_eq!(
            (own(&value, 5), own(&value, 7), own(&value, 9)),
            (Some(first), Some(second.clone()), None)
        );
        assert_eq!(own(&both(None, &third), 9), Some(third));
        assert!(own(b"", 0).is_none() && own(b"garbage", 0).is_none());
    }

    #[test]
    fn what_does_not_fit_loses_its_older_half() {
        let long = "x".repeat(2000);
        let read = decoded(&encoded((0..1000).map(|n| change(n, &long)).collect()));
        assert!((200..=500).contains(&read.len()), "{}", read.len());
        assert_eq!(read.last().map(|s| s.onset), Some(UnixNanos(999)));
    }

    #[test]
    fn a_checkpoint_takes_over_the_memory_of_one_that_was_not_kept() {
        let mark = |sequence| LowWater { sequence, from: UnixNanos(1), ..LowWater::default() };
        let checkpoint = |sequence, memory| Checkpoint {
            standing: Standing {
                mark: mark(sequence),
                decided: UnixNanos(2),
                budgets: UnixNanos(0),
                heard: Vec::new(),
                told: Vec::new(),
            },
            memory,
            budgets: None,
        };
        let memory = Memory { changes: vec![change(1, "a")], machines: Vec::new() };
        let kept = checkpoint(9, None).after(Some(checkpoint(8, Some(memory))));
        assert_eq!((kept.standing.mark.sequence, kept.memory.unwrap().changes.len()), (9, 1));
    }

    #[test]
    fn a_mark_of_an_earlier_build_is_read() {
        let text =
            serde_json::to_string(&LowWater { sequence: 7, from: UnixNanos(3), ..LowWater::default() })
                .unwrap();
        let read: Standing = serde_json::from_str(&text).unwrap();
        assert_eq!((read.mark.sequence, read.decided, read.heard.len()), (7, UnixNanos(0), 0));
    }
}
