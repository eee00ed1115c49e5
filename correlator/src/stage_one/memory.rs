//! The memory of the process, as the shard workers and the status know it.

use std::sync::Arc;

use tapio_runtime::memory::{MemoryWatch, OwnMemory, Pressure};
use tapio_schemas::status::MemoryStatus;

use crate::config::CorrelatorConfig;
use crate::metrics::CorrelatorMetrics;

/// Looks at the memory and tells of it.
pub struct Memory {
    watch: MemoryWatch,
    metrics: CorrelatorMetrics,
    told: Pressure,
}

impl Memory {
    /// The memory of this process, with the limit of the settings.
    pub fn new(config: &CorrelatorConfig, metrics: &CorrelatorMetrics) -> Self {
        let watch = MemoryWatch::new(Arc::new(OwnMemory), config.memory_max);
        Self { watch, metrics: metrics.clone(), told: Pressure::Calm }
    }

    /// What is shed from now on.
    pub fn look(&mut self) -> Pressure {
        let pressure = self.watch.look();
        let status = MemoryStatus::new(self.watch.bytes(), self.watch.bytes_max(), pressure.sheds_up_to());
        if pressure != std::mem::replace(&mut self.told, pressure) {
            tracing::warn!(bytes = status.bytes, bytes_max = status.bytes_max, ?pressure, "memory");
        }
        self.metrics.board.set_memory(status);
        pressure
    }
}
