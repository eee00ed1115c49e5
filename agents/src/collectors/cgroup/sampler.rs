//! Which group is read when.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;

use super::config::CgroupConfig;
use super::read::{FileBudget, GroupReader, Sample};
use super::{discover, events};
use crate::attribution::{Attribution, Hierarchies};

/// A group that has lost its last process is still read for this long: its counters tell what happened.
const EMPTY_KEEP: Duration = Duration::from_secs(30);
/// Above this share of its limit, a growing group is read fast.
const FAST_SHARE: f64 = 0.5;
/// A group that reaches its limit within this time, at its present growth, is read fast.
const FAST_HORIZON_SECONDS: f64 = 600.0;
/// Once fast, it stays so for this long after it stopped to grow: growth comes in steps.
const FAST_KEEP: Duration = Duration::from_secs(30);
/// Samples that are due within this time are taken together.
const TOGETHER: Duration = Duration::from_millis(50);

/// The groups of this machine and when they are due.
pub struct Sampler {
    config: CgroupConfig,
    trees: Hierarchies,
    attribution: Arc<Attribution>,
    budget: FileBudget,
    groups: HashMap<String, Group>,
    next_discovery: Duration,
    over: usize,
    buffer: Vec<u8>,
}

struct Group {
    reader: GroupReader,
    due: Duration,
    /// Last search that found processes in it.
    inhabited: Duration,
    /// Working set and time of the last sample.
    last: Option<(u64, Duration)>,
    fast_until: Duration,
}

impl Sampler {
    /// Knows no groups yet; the first [`Sampler::tick`] finds them.
    pub fn new(config: CgroupConfig, trees: Hierarchies, attribution: Arc<Attribution>) -> Self {
        let allowed = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let half = allowed.map_or(usize::MAX, |n| usize::try_from(n / 2).unwrap_or(usize::MAX));
        let budget = FileBudget::new(config.open_files_max.min(half));
        Self {
            config,
            trees,
            attribution,
            budget,
            groups: HashMap::new(),
            next_discovery: Duration::ZERO,
            over: 0,
            buffer: Vec::new(),
        }
    }

    /// Groups known now.
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Groups left out by `groups_max` in the last search.
    pub fn left_out(&self) -> usize {
        self.over
    }

    /// Searches when it is time, reads what is due, and gives the events. `unix_now` stamps each reading.
    pub fn tick(&mut self, now: Duration, unix_now: &dyn Fn() -> UnixNanos) -> Vec<UnifiedEvent> {
        if now >= self.next_discovery {
            self.discover(now);
        }
        let mut out = Vec::new();
        let mut gone = Vec::new();
        let (interval, fast) = (self.config.interval.get(), self.config.fast_interval.get());
        for (path, group) in &mut self.groups {
            if group.due > now + TOGETHER {
                continue;
            }
            let sample = group.reader.read(&mut self.buffer);
            if sample.is_empty() {
                gone.push(path.clone());
                continue;
            }
            group.judge(&sample, now, fast);
            group.due = now + if now < group.fast_until { fast } else { interval };
            events::append(&sample, &self.attribution.resolve_path(path), unix_now(), &mut out);
        }
        for path in gone {
            self.groups.remove(&path);
        }
        out
    }

    /// When [`Sampler::tick`] has something to do next.
    pub fn next_due(&self) -> Duration {
        let groups = self.groups.values().map(|g| g.due).min();
        groups.map_or(self.next_discovery, |due| due.min(self.next_discovery))
    }

    fn discover(&mut self, now: Duration) {
        self.next_discovery = now + self.config.discover_interval.get();
        // The same walk teaches attribution the ids of groups while they live.
        self.attribution.refresh();
        let (paths, over) = discover::groups(&self.trees, self.config.groups_max);
        if over > 0 && self.over == 0 {
            tracing::warn!(over, "more control groups than cgroup.groups_max: some are not sampled");
        }
        self.over = over;
        for path in paths {
            if let Some(group) = self.groups.get_mut(&path) {
                group.inhabited = now;
            } else {
                let reader = GroupReader::new(&self.trees, &path, &self.budget);
                let group =
                    Group { reader, due: now, inhabited: now, last: None, fast_until: Duration::ZERO };
                self.groups.insert(path, group);
            }
        }
        self.groups.retain(|_, group| now.saturating_sub(group.inhabited) <= EMPTY_KEEP);
    }
}

impl Group {
    fn judge(&mut self, sample: &Sample, now: Duration, fast: Duration) {
        let Some(memory) = &sample.memory else { return };
        let before = self.last.replace((memory.working_set, now));
        if before.is_none() && memory.limit.is_some() {
            // Whether it grows is worth knowing soon: one fast sample after the first.
            self.fast_until = now + fast;
        }
        let (Some(limit), Some((used_before, at))) = (memory.limit, before) else { return };
        let seconds = now.saturating_sub(at).as_secs_f64();
        if memory.working_set <= used_before || seconds <= 0.0 {
            return;
        }
        let slope = (memory.working_set - used_before) as f64 / seconds;
        let left = limit.saturating_sub(memory.working_set) as f64;
        let share = memory.working_set as f64 / limit.max(1) as f64;
        if share > FAST_SHARE || left / slope < FAST_HORIZON_SECONDS {
            self.fast_until = now + FAST_KEEP;
        }
    }
}
