//! Semantic groups: what happens in one trace or lineage and shares a meaning.
//!
//! By key first, by intent second: the members of a group share trace or lineage, and its type. Bounded in
//! count, members and time; the oldest are closed first, and counted.

use std::collections::{BTreeSet, HashMap};

use tapio_schemas::{GroupId, ShardKey, SmolStr, UnixNanos};

use super::counters::Counters;
use crate::config::{GroupConfig, nanos};

/// The open groups of a shard.
pub struct Groups {
    config: GroupConfig,
    open: HashMap<GroupId, Group>,
    by_age: BTreeSet<(UnixNanos, GroupId)>,
}

#[derive(Debug)]
struct Group {
    began: UnixNanos,
    last: UnixNanos,
    members: usize,
}

impl Groups {
    /// No groups.
    pub fn new(config: GroupConfig) -> Self {
        Self { config, open: HashMap::new(), by_age: BTreeSet::new() }
    }

    /// Puts `members` events of `key` into the group of this type, opening it when there is none.
    pub fn join(
        &mut self,
        cluster: &SmolStr,
        key: ShardKey,
        group_type: &'static str,
        at: UnixNanos,
        counters: &mut Counters,
    ) -> GroupId {
        let id = group_id(cluster, key, group_type);
        if let Some(group) = self.open.get_mut(&id) {
            let fresh = at.since(group.last) <= nanos(self.config.idle);
            if fresh && at.since(group.began) <= nanos(self.config.age_max) {
                group.last = group.last.max(at);
                if group.members < self.config.members_max {
                    group.members += 1;
                } else {
                    counters.evicted.group_members += 1;
                }
                return id;
            }
            self.by_age.remove(&(group.began, id));
        }
        self.open.insert(id, Group { began: at, last: at, members: 1 });
        self.by_age.insert((at, id));
        counters.groups += 1;
        while self.open.len() > self.config.count_max {
            let Some((_, oldest)) = self.by_age.pop_first() else { break };
            self.open.remove(&oldest);
            counters.evicted.groups += 1;
        }
        id
    }

    /// Closes what has been silent too long.
    pub fn expire(&mut self, now: UnixNanos) {
        // The oldest only: the rest is reached as time goes on, and the count is bounded anyway.
        while let Some((began, id)) = self.by_age.first().copied() {
            let silent = self.open.get(&id).is_none_or(|g| now.since(g.last) > nanos(self.config.idle));
            if !silent && now.since(began) <= nanos(self.config.age_max) {
                return;
            }
            self.by_age.pop_first();
            self.open.remove(&id);
        }
    }

    /// Open groups.
    pub fn count(&self) -> usize {
        self.open.len()
    }
}

/// A group is named by what it is, so that every replica names it alike.
pub fn group_id(cluster: &str, key: ShardKey, group_type: &str) -> GroupId {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    hash.update(&(cluster.len() as u32).to_le_bytes());
    hash.update(cluster.as_bytes());
    hash.update(&key.id.to_le_bytes());
    hash.update(&[u8::from(key.derived)]);
    hash.update(group_type.as_bytes());
    GroupId(hash.digest128())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_bounded_and_the_oldest_goes_first() {
        let config = GroupConfig { count_max: 2, members_max: 2, ..GroupConfig::default() };
        let (mut groups, mut counters) = (Groups::new(config), Counters::default());
        let cluster = SmolStr::new("c");
        let mut join = |key: u128, at: u64, counters: &mut Counters| {
            let id = groups.join(&cluster, ShardKey::trace(key), "rollout", UnixNanos(at), counters);
            (id, groups.count())
        };
        let (first, _) = join(1, 10, &mut counters);
        assert_eq!(join(1, 11, &mut counters).0, first);
        join(1, 12, &mut counters);
        assert_eq!(counters.evicted.group_members, 1);
        join(2, 13, &mut counters);
        assert_eq!(join(3, 14, &mut counters).1, 2);
        assert_eq!((counters.groups, counters.evicted.groups), (3, 1));
    }
}
