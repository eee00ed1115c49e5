//! Ids of one tree's groups, with those that are gone.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::WALK_GROUPS_MAX;

/// How long a group that is gone is still known.
pub const TOMBSTONE: Duration = Duration::from_secs(15 * 60);
/// Groups known, living and gone; beyond it the one not seen for longest is forgotten.
const GROUPS_MAX: usize = 2 * WALK_GROUPS_MAX;

#[derive(Default)]
pub(super) struct Learned {
    groups: HashMap<u64, Known>,
}

struct Known {
    path: Arc<str>,
    last_seen: Duration,
}

impl Learned {
    pub(super) fn get(&mut self, id: u64, now: Duration) -> Option<Arc<str>> {
        let known = self.groups.get_mut(&id)?;
        // Evidence still comes: it stays known.
        known.last_seen = now;
        Some(Arc::clone(&known.path))
    }

    pub(super) fn contains(&self, id: u64) -> bool {
        self.groups.contains_key(&id)
    }

    pub(super) fn learn(&mut self, id: u64, path: &str, now: Duration) {
        match self.groups.get_mut(&id) {
            // An id is used again only for another path.
            Some(known) if &*known.path == path => known.last_seen = now,
            _ => {
                if self.groups.len() >= GROUPS_MAX {
                    self.forget_oldest();
                }
                self.groups.insert(id, Known { path: path.into(), last_seen: now });
            }
        }
    }

    pub(super) fn prune(&mut self, now: Duration) {
        self.groups.retain(|_, known| now.saturating_sub(known.last_seen) <= TOMBSTONE);
    }

    fn forget_oldest(&mut self) {
        let oldest = self.groups.iter().min_by_key(|(_, known)| known.last_seen).map(|(id, _)| *id);
        if let Some(id) = oldest {
            self.groups.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gone_are_known_for_a_while_and_the_number_is_bounded() {
        let mut learned = Learned::default();
        let at = Duration::from_secs;
        learned.learn(1, "/a", at(0));
        learned.learn(2, "/b", at(0));
        assert_eq!(learned.get(1, at(600)).as_deref(), Some("/a"));
        learned.prune(at(901));
        assert!(learned.contains(1), "asked for ten minutes ago");
        assert!(!learned.contains(2));
        learned.learn(1, "/again", at(902));
        assert_eq!(learned.get(1, at(902)).as_deref(), Some("/again"));
        for id in 0..GROUPS_MAX as u64 + 10 {
            learned.learn(id, "/x", at(1000 + id));
        }
        assert_eq!(learned.groups.len(), GROUPS_MAX);
        assert!(learned.contains(GROUPS_MAX as u64 + 9) && !learned.contains(0));
    }
}
