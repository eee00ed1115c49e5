//! Things of which one is no news and many at once are.

use std::collections::HashMap;

use tapio_schemas::{SignalKind, UnixNanos};

use super::episode::EpisodeKey;

/// Window in which occurrences are counted.
const WINDOW_NS: u64 = 10_000_000_000;
/// Things counted at a time; when full, counting begins anew (a burst is told a window later at worst).
const COUNTED_MAX: usize = 8192;

/// Occurrences within a window that make news; one is enough for most kinds.
pub fn needed(kind: SignalKind) -> u64 {
    match kind {
        SignalKind::NetRetransmits | SignalKind::NetDrops => 10,
        SignalKind::LogErrors => 3,
        _ => 1,
    }
}

/// Counts per deviation.
#[derive(Default)]
pub struct Bursts {
    counts: HashMap<EpisodeKey, (u64, u64)>,
}

impl Bursts {
    /// Occurrences to tell of: zero below the needed number; all of the window when it is reached; then one by one.
    pub fn admit(&mut self, key: EpisodeKey, at: UnixNanos, needed: u64, is_open: bool) -> u64 {
        if needed <= 1 || is_open {
            return 1;
        }
        if self.counts.len() >= COUNTED_MAX && !self.counts.contains_key(&key) {
            self.counts.clear();
        }
        let window = at.0 / WINDOW_NS;
        let (counted_in, count) = self.counts.entry(key).or_insert((window, 0));
        if *counted_in != window {
            (*counted_in, *count) = (window, 0);
        }
        *count += 1;
        if *count >= needed { std::mem::take(count) } else { 0 }
    }
}
