//! What a storage replica tells of itself.

use tapio_runtime::bus::Bus;
use tapio_runtime::clock::SharedClock;
use tapio_runtime::status::Speaker;
use tapio_runtime::supervise::{RestartPolicy, SuperviseError, Supervision};
use tapio_schemas::UnixNanos;
use tapio_schemas::status::{Dropped, StorageStatus};

use crate::condition::Condition;
use crate::store::StoreMetrics;

/// What the word is made of.
#[derive(Clone)]
pub struct Word {
    /// The durable consumer's name.
    pub name: String,
    /// Counts.
    pub metrics: StoreMetrics,
    /// What is wrong.
    pub condition: Condition,
    /// Bus.
    pub bus: Bus,
    /// Clock.
    pub clock: SharedClock,
}

impl Word {
    fn read(&self) -> StorageStatus {
        let refused: Vec<Dropped> = StoreMetrics::REFUSALS
            .into_iter()
            .map(|reason| Dropped {
                stage: "storage".to_owned(),
                reason: reason.to_owned(),
                count: self.metrics.not_stored_count(reason),
            })
            .filter(|dropped| dropped.count > 0)
            .collect();
        let at = UnixNanos(self.clock.now_unix_nanos());
        StorageStatus {
            at,
            name: self.name.clone(),
            received: self.metrics.received_count(),
            stored: self.metrics.stored_count(),
            retried: self.metrics.retried_count(),
            refused,
            behind: self.condition.behind(),
            waits_seconds: self.condition.waits(at).as_secs(),
            failed: self.condition.watch().borrow().as_deref().map(str::to_owned),
            gaps: self.condition.gaps(),
            circuit: self.bus.circuit().as_str().to_owned(),
        }
    }
}

/// Tells it as long as the service runs.
///
/// # Errors
/// When the supervisor is gone.
pub async fn add(supervision: &Supervision, word: Word) -> Result<(), SuperviseError> {
    let speaker = Speaker { role: "storage", cluster: None, name: word.name.clone() };
    supervision
        .add_task("storage-status", RestartPolicy::default(), move |context| {
            let word = word.clone();
            tapio_runtime::status::tell(word.bus.clone(), speaker.clone(), move || word.read(), context)
        })
        .await
}
