//! Tells the correlators the priors that follow from what was learnt.
//!
//! A version holds from an event time on that no correlator can have decided yet, and stays in a short history: so a
//! tick that is decided again, after a restart or by another replica, is decided with the priors of its time.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use tapio_runtime::bus::{Bus, BusError, Kv};
use tapio_runtime::supervise::{RestartPolicy, SuperviseError, Supervision, WorkerContext, WorkerResult};
use tapio_schemas::UnixNanos;
use tapio_schemas::learning::PriorHistory;
use tapio_schemas::names::priors_key;
use tokio::sync::watch;

use super::LearntCause;
use crate::cell::StoreCell;
use crate::store::StoreError;

/// Event time between now and the first tick of a version: every correlator has read it by then.
const AHEAD: Duration = Duration::from_secs(5);
/// Wait before what could not be told is told again, and between two looks when nothing is new.
const AGAIN: Duration = Duration::from_secs(2);
/// Attempts to write a history that another store writes too.
const WRITE_ATTEMPTS: usize = 8;

/// Told when there may be something new to learn from. Clones share it.
#[derive(Debug, Clone)]
pub struct Learnt {
    changes: watch::Sender<u64>,
}

impl Default for Learnt {
    fn default() -> Self {
        Self { changes: watch::Sender::new(0) }
    }
}

impl Learnt {
    /// Outcomes have changed.
    pub fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

/// Adds the task that publishes, at the start and whenever outcomes have changed.
///
/// # Errors
/// When the supervisor is gone.
pub async fn add_publisher(
    supervision: &Supervision,
    bus: Bus,
    cell: StoreCell,
    learnt: Learnt,
) -> Result<(), SuperviseError> {
    let factory = move |context: WorkerContext| {
        let (bus, cell, changes) = (bus.clone(), cell.clone(), learnt.changes.subscribe());
        async move { run(bus, cell, changes, context).await }
    };
    supervision.add_task("storage-priors", RestartPolicy::default(), factory).await
}

async fn run(
    bus: Bus,
    cell: StoreCell,
    mut changes: watch::Receiver<u64>,
    context: WorkerContext,
) -> WorkerResult {
    let mut untold = true;
    loop {
        context.progress.tick();
        if untold {
            changes.borrow_and_update();
            match tell(&bus, &cell).await {
                Ok(()) => untold = false,
                Err(reason) => tracing::warn!(reason, "what was learnt is not told yet"),
            }
        }
        tokio::select! {
            biased;
            () = context.shutdown.wait() => return Ok(()),
            changed = changes.changed(), if !untold => untold = changed.is_ok(),
            () = context.clock.sleep(AGAIN) => {}
        }
    }
}

async fn tell(bus: &Bus, cell: &StoreCell) -> Result<(), String> {
    let (reading, now) = (cell.clone(), cell.now());
    let learn = move || -> Result<_, StoreError> {
        let store = reading.get()?;
        Ok((store.learnt()?, store.clusters_with_outcomes()?))
    };
    let read = tokio::task::spawn_blocking(learn).await.map_err(|error| error.to_string())?;
    let (learnt, clusters) = read.map_err(|error| error.to_string())?;
    let from = UnixNanos(now.0 + AHEAD.as_nanos() as u64);
    let kv = bus.kv().await.map_err(|error| error.to_string())?;
    for cluster in clusters {
        let of_cluster = learnt.iter().filter(|learnt| learnt.cluster == *cluster);
        publish(&kv, &cluster, of_cluster, from).await.map_err(|error| error.to_string())?;
    }
    Ok(())
}

async fn publish(
    kv: &Kv,
    cluster: &str,
    learnt: impl Iterator<Item = &LearntCause>,
    from: UnixNanos,
) -> Result<(), BusError> {
    let factors: BTreeMap<_, _> = learnt.map(|learnt| (learnt.cause.clone(), learnt.factor)).collect();
    let key = priors_key(cluster);
    for _ in 0..WRITE_ATTEMPTS {
        let entry = kv.get(&key).await?;
        let mut history: PriorHistory =
            entry.as_ref().and_then(|entry| serde_json::from_slice(&entry.value).ok()).unwrap_or_default();
        if !history.add(from, factors.clone()) {
            return Ok(());
        }
        let value = Bytes::from(serde_json::to_vec(&history).unwrap_or_default());
        let written = match entry {
            Some(entry) => kv.compare_and_set(&key, value, entry.revision).await,
            None => kv.create(&key, value).await,
        };
        match written {
            Err(BusError::Conflict { .. }) => {}
            written => {
                tracing::info!(cluster, causes = factors.len(), %from, "priors follow from outcomes");
                return written.map(|_| ());
            }
        }
    }
    Err(BusError::Conflict { key })
}
