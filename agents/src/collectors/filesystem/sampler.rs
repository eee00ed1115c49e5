//! Asks how much room file systems have, and gives it as events.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::StatVfs;
use tapio_schemas::attribute::Attribute;
use tapio_schemas::entity::EntityRef;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::{EventId, UnixNanos};
use tapio_schemas::kind::{EventKind, EventSeverity, Source};
use tapio_schemas::payload::{MetricData, MetricKind, Payload};

use super::config::FilesystemConfig;
use super::mounts::{Mount, mounts, numbers};

const USAGE: &str = "system.filesystem.usage";
/// Types whose files say the device that the list of mounts says; those of others have numbers of their own.
const TYPES_OF_THEIR_DEVICE: [&str; 8] = ["ext2", "ext3", "ext4", "xfs", "f2fs", "vfat", "exfat", "tmpfs"];
/// The agent itself.
const SELF: &str = "/proc/self";

/// The file systems of one machine.
pub struct Sampler {
    config: FilesystemConfig,
    node: Arc<EntityRef>,
    left_out: usize,
    blind: Option<String>,
}

/// Mounts, and where they are seen.
struct View {
    list: String,
    root: PathBuf,
    /// Why these are not those of the machine.
    blind: Option<String>,
}

impl View {
    /// The mounts of the configured process, or the agent's own where those cannot be seen.
    fn of(config: &FilesystemConfig) -> Self {
        let process = &config.process;
        let root =
            if config.root.as_os_str().is_empty() { process.join("root") } else { config.root.clone() };
        let mountinfo = process.join("mountinfo");
        let list =
            fs::read_to_string(&mountinfo).map_err(|error| format!("{}: {error}", mountinfo.display()));
        // With a slash at its end a link is followed, which takes the right to.
        let seen = rustix::fs::statvfs(root.join("")).map_err(|error| format!("{}: {error}", root.display()));
        let (list, reason) = match (list, seen) {
            (Ok(list), Ok(_)) => return Self { list, root, blind: None },
            (Ok(list), Err(reason)) => (list, reason),
            (Err(reason), _) => (String::new(), reason),
        };
        let own = fs::read_to_string(Path::new(SELF).join("mountinfo")).unwrap_or_default();
        let theirs: HashSet<&str> = numbers(&list).collect();
        let is_same = numbers(&own).any(|number| theirs.contains(number));
        let blind = (!is_same).then(|| {
            format!(
                "the machine's mounts cannot be seen ({reason}), only this process's own are: mount the host's / here \
                 and name it with filesystem.root"
            )
        });
        Self { list: own, root: Path::new(SELF).join("root"), blind }
    }

    /// Where a mount is seen.
    fn path(&self, mount: &Mount) -> PathBuf {
        self.root.join(mount.point.trim_start_matches('/'))
    }

    /// Whether there is a directory, and no other mount upon it. A file that is mounted is a way into a container, and
    /// no file system of its own.
    fn shows(&self, mount: &Mount) -> bool {
        let Ok(about) = fs::metadata(self.path(mount)) else { return false };
        let device = format!("{}:{}", rustix::fs::major(about.dev()), rustix::fs::minor(about.dev()));
        let is_it = device == mount.device || !TYPES_OF_THEIR_DEVICE.contains(&mount.kind.as_str());
        about.is_dir() && is_it
    }
}

impl Sampler {
    /// Of the mounts of the configured process.
    pub fn new(config: &FilesystemConfig, node: Arc<EntityRef>) -> Self {
        Self { config: config.clone(), node, left_out: 0, blind: None }
    }

    /// File systems left out by `mounts_max` in the last sample.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// Why the last sample was not of the machine's file systems, and what to do.
    pub fn blind(&self) -> Option<&str> {
        self.blind.as_deref()
    }

    /// One sample.
    pub fn sample(&mut self, at: UnixNanos) -> Vec<UnifiedEvent> {
        let view = View::of(&self.config);
        let mut all = mounts(&view.list, &self.config.types, |mount| view.shows(mount));
        let over = all.len().saturating_sub(self.config.mounts_max);
        if over > 0 && self.left_out == 0 {
            tracing::warn!(over, "more file systems than filesystem.mounts_max: some are not sampled");
        }
        // Each pod has some in memory; they must not push out disks.
        all.sort_by_key(|mount| mount.kind == "tmpfs");
        all.truncate(self.config.mounts_max);
        self.left_out = over;
        let mut out = Vec::new();
        for mount in &all {
            // Gone meanwhile, or hidden: there is nothing to say of it.
            let Ok(size) = rustix::fs::statvfs(view.path(mount)) else { continue };
            // A file system without blocks has no size (a tmpfs without limit).
            if size.f_blocks > 0 {
                self.events(mount, &size, at, &mut out);
            }
        }
        self.blind = view.blind;
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
