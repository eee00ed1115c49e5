//! Which states of an object are older than what is known of it: they are told when a list or a second watch races the
//! first one, and must not bring back what has been changed or deleted since. What a list has is there whatever its version
//! says: the versions of a cluster that was restored begin anew.
//!
//! Versions of a resource can be compared as decimal numbers (KEP-5504); what has no such version is taken as it comes.

use std::collections::{HashMap, VecDeque};

use smol_str::SmolStr;

use super::convert::WatchType;
use super::summary::Summary;

/// Deleted objects that are remembered; the longest deleted are forgotten first.
const DELETED_MAX: usize = 8192;

/// What was deleted lately, whether its end was told or is known from a list that no longer had it.
#[derive(Debug, Default)]
pub(super) struct Versions {
    /// uid → the last version that is known of it.
    deleted: HashMap<SmolStr, u64>,
    /// In the order of deletion.
    order: VecDeque<SmolStr>,
    /// States that were not taken.
    pub outdated: u64,
}

impl Versions {
    /// True when the state is older than what is known of the object, or of the one that has its name now.
    pub fn is_outdated(&mut self, watch_type: WatchType, new: &Summary, known: Option<&Summary>) -> bool {
        if new.version == 0 {
            return false;
        }
        let is_gone = self.deleted.get(&new.uid).is_some_and(|version| new.version <= *version);
        let is_older = known.is_some_and(|known| {
            // The end of an object is the last that is told of it, whatever version comes with it.
            let ends = watch_type == WatchType::Deleted && known.uid == new.uid;
            new.version < known.version && !ends
        });
        let is_outdated = is_gone || is_older;
        self.outdated += u64::from(is_outdated);
        is_outdated
    }

    /// A list has an object: it is there, even if it was deleted before.
    pub fn listed(&mut self, object: &Summary) {
        if self.deleted.remove(&object.uid).is_some() {
            self.order.retain(|uid| *uid != object.uid);
        }
    }

    /// An object is no more.
    pub fn deleted(&mut self, object: &Summary) {
        if object.version == 0 || object.uid.is_empty() {
            return;
        }
        if self.deleted.insert(object.uid.clone(), object.version).is_none() {
            self.order.push_back(object.uid.clone());
        }
        while self.order.len() > DELETED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.deleted.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(uid: &str, version: usize) -> Summary {
        let version = version.to_string();
        let metadata = json!({"name": "api", "namespace": "shop", "uid": uid, "resourceVersion": version});
        Summary::of(&json!({"kind": "Pod", "metadata": metadata})).unwrap()
    }

    fn is_outdated(versions: &mut Versions, new: &Summary, known: Option<&Summary>) -> bool {
        versions.is_outdated(WatchType::Modified, new, known)
    }

    #[test]
    fn what_is_older_than_what_is_known_is_not_taken() {
        let mut versions = Versions::default();
        let known = pod("u", 10);
        assert!(is_outdated(&mut versions, &pod("u", 9), Some(&known)));
        assert!(!is_outdated(&mut versions, &pod("u", 10), Some(&known)));
        assert!(!is_outdated(&mut versions, &pod("u", 0), Some(&known)), "nobody knows how old it is");
        assert!(!versions.is_outdated(WatchType::Deleted, &pod("u", 9), Some(&known)), "its end is the last");
        assert!(versions.is_outdated(WatchType::Deleted, &pod("t", 9), Some(&known)), "of the one before");
        assert_eq!(versions.outdated, 2);
    }

    #[test]
    fn what_is_gone_comes_back_with_a_list_only() {
        let mut versions = Versions::default();
        versions.deleted(&pod("u", 100));
        assert!(is_outdated(&mut versions, &pod("u", 50), None));
        assert!(!is_outdated(&mut versions, &pod("v", 50), None), "another one");
        versions.listed(&pod("u", 50));
        assert!(!is_outdated(&mut versions, &pod("u", 51), Some(&pod("u", 50))));
        versions.deleted(&pod("u", 60));
        assert!(is_outdated(&mut versions, &pod("u", 60), None));
        assert!(!is_outdated(&mut versions, &pod("u", 61), None));
        assert_eq!(versions.order.len(), 1);
    }

    #[test]
    fn the_longest_deleted_are_forgotten_first() {
        let mut versions = Versions::default();
        (0..=DELETED_MAX).for_each(|n| versions.deleted(&pod(&n.to_string(), 10)));
        assert_eq!((versions.deleted.len(), versions.order.len()), (DELETED_MAX, DELETED_MAX));
        assert!(!is_outdated(&mut versions, &pod("0", 5), None));
        assert!(is_outdated(&mut versions, &pod("1", 5), None));
    }
}
