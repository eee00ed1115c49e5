//! Which states of an object are older than what is known of it: they are told when a list or a second watch races the
//! first one, and must not bring back what has been changed or deleted since.
//!
//! Versions of a resource can be compared as decimal numbers (KEP-5504); what has no such version is taken as it comes.

use std::collections::{HashMap, VecDeque};

use smol_str::SmolStr;

use super::convert::WatchType;
use super::summary::Summary;

/// Deleted objects that are remembered; the longest deleted are forgotten first.
const DELETED_MAX: usize = 8192;

/// What was deleted lately.
#[derive(Debug, Default)]
pub(super) struct Versions {
    /// uid → version with which it was deleted.
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

    /// An object was deleted.
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
