//! Asks how much room file systems have, and gives it as events.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::StatVfs;
use tapio_schemas::attribute::Attribute;
use tapio_schemas::entity::EntityRef;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::{EventId, UnixNanos};
use tapio_schemas::kind::{EventKind, EventSeverity, Source};
use tapio_schemas::payload::{MetricData, MetricKind, Payload};

use super::config::FilesystemConfig;
use super::mounts::{Mount, mounts};

const USAGE: &str = "system.filesystem.usage";

/// The file systems of one machine.
pub struct Sampler {
    process: PathBuf,
    types: Vec<String>,
    mounts_max: usize,
    node: Arc<EntityRef>,
    left_out: usize,
}

impl Sampler {
    /// Reads the mounts of the configured process, or the agent's own where those cannot be read.
    pub fn new(config: &FilesystemConfig, node: Arc<EntityRef>) -> Self {
        let process = &config.process;
        let readable = fs::read_to_string(process.join("mountinfo")).is_ok()
            && rustix::fs::statvfs(process.join("root/")).is_ok();
        Self {
            process: if readable { process.clone() } else { PathBuf::from("/proc/self") },
            types: config.types.clone(),
            mounts_max: config.mounts_max,
            node,
            left_out: 0,
        }
    }

    /// File systems left out by `mounts_max` in the last sample.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// One sample.
    pub fn sample(&mut self, at: UnixNanos) -> Vec<UnifiedEvent> {
        let list = fs::read_to_string(self.process.join("mountinfo")).unwrap_or_default();
        let mut all = mounts(&list, &self.types);
        let over = all.len().saturating_sub(self.mounts_max);
        if over > 0 && self.left_out == 0 {
            tracing::warn!(over, "more file systems than filesystem.mounts_max: some are not sampled");
        }
        all.truncate(self.mounts_max);
        self.left_out = over;
        let root = self.process.join("root");
        let mut out = Vec::new();
        for mount in &all {
            // Gone meanwhile, or hidden: there is nothing to say of it.
            let Ok(size) = rustix::fs::statvfs(root.join(mount.point.trim_start_matches('/'))) else {
                continue;
            };
            // A file system without blocks has no size (a tmpfs without limit).
            if size.f_blocks > 0 {
                self.events(mount, &size, at, &mut out);
            }
        }
        out
    }

    /// Used, free and reserved bytes, each with what they are of: what programs can use in all.
    fn events(&self, mount: &Mount, size: &StatVfs, at: UnixNanos, out: &mut Vec<UnifiedEvent>) {
        let bytes = |blocks: u64| blocks.saturating_mul(size.f_frsize) as f64;
        let used = bytes(size.f_blocks.saturating_sub(size.f_bfree));
        let free = bytes(size.f_bavail);
        let reserved = bytes(size.f_bfree.saturating_sub(size.f_bavail));
        for (state, value) in [("used", used), ("free", free), ("reserved", reserved)] {
            let seed = format!("{:032x}{USAGE}{state}{}", self.node.lineage, mount.point);
            let metric = MetricData {
                name: USAGE.into(),
                unit: "By".into(),
                kind: MetricKind::Gauge,
                value,
                limit: used + free,
                attributes: vec![
                    Attribute::new("system.filesystem.mountpoint", mount.point.as_str()),
                    Attribute::new("system.filesystem.type", mount.kind.as_str()),
                    Attribute::new("system.device", mount.source.as_str()),
                    Attribute::new("system.filesystem.state", state),
                ],
                ..MetricData::default()
            };
            out.push(UnifiedEvent {
                id: EventId::derive(at, seed.as_bytes()),
                timestamp: at,
                observed_at: at,
                kind: EventKind::Metric,
                source: Source::Filesystem,
                severity: EventSeverity::Info,
                entity: Arc::clone(&self.node),
                payload: Payload::Metric(Box::new(metric)),
                ..UnifiedEvent::default()
            });
        }
    }
}
