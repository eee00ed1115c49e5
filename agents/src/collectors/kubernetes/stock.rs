//! The objects that are known, how many there are of each kind, and which kinds are being listed.

use std::collections::{HashMap, HashSet};

use smol_str::SmolStr;

use super::summary::Summary;

/// Kind, namespace and name.
pub(super) type Key = (SmolStr, SmolStr, SmolStr);

/// The key of an object.
pub(super) fn key_of(object: &Summary) -> Key {
    (object.kind.clone(), object.namespace.clone(), object.name.clone())
}

/// Objects by their keys.
#[derive(Debug, Default)]
pub(super) struct Stock {
    objects: HashMap<Key, Summary>,
    counts: HashMap<SmolStr, usize>,
    lists: HashMap<SmolStr, List>,
}

/// How it stands with the lists of a kind. A kind of which no list ever began, as in a recording, has no such thing.
#[derive(Debug, Default)]
struct List {
    /// What has been seen in the list that is under way.
    seen: Option<HashSet<Key>>,
    /// One was read to its end.
    was_complete: bool,
}

impl Stock {
    pub fn get(&self, key: &Key) -> Option<&Summary> {
        self.objects.get(key)
    }

    pub fn find(&self, kind: &'static str, namespace: &SmolStr, name: &SmolStr) -> Option<&Summary> {
        self.objects.get(&(SmolStr::new_static(kind), namespace.clone(), name.clone()))
    }

    pub fn values(&self) -> impl Iterator<Item = &Summary> {
        self.objects.values()
    }

    pub fn len(&self) -> usize {
        self.objects.len()
    }

    pub fn insert(&mut self, key: Key, object: Summary) {
        let kind = key.0.clone();
        if self.objects.insert(key, object).is_none() {
            *self.counts.entry(kind).or_default() += 1;
        }
    }

    pub fn remove(&mut self, key: &Key) -> Option<Summary> {
        let object = self.objects.remove(key)?;
        if let Some(count) = self.counts.get_mut(&key.0) {
            *count = count.saturating_sub(1);
        }
        Some(object)
    }

    /// True when what is not there of this kind is known not to be: others of it are, and no list was cut short before any was
    /// complete.
    pub fn knows(&self, kind: &str) -> bool {
        let is_readable = self.lists.get(kind).is_none_or(|list| list.was_complete);
        is_readable && self.counts.get(kind).is_some_and(|count| *count > 0)
    }

    /// True while a list of this kind is under way: what is not there may still come.
    pub fn is_listing(&self, kind: &str) -> bool {
        self.lists.get(kind).is_some_and(|list| list.seen.is_some())
    }

    /// A full list of a kind begins.
    pub fn list_begins(&mut self, kind: &str) {
        self.lists.entry(SmolStr::new(kind)).or_default().seen = Some(HashSet::new());
    }

    /// Takes note of an object in a list, if one of its kind is under way.
    pub fn note_listed(&mut self, key: &Key) {
        if let Some(seen) = self.lists.get_mut(&key.0).and_then(|list| list.seen.as_mut()) {
            seen.insert(key.clone());
        }
    }

    /// A list that is under way will not be finished.
    pub fn list_breaks(&mut self, kind: &str) {
        if let Some(list) = self.lists.get_mut(kind) {
            list.seen = None;
        }
    }

    /// A list is complete: what was seen in it; none when there was none.
    pub fn list_ends(&mut self, kind: &str) -> Option<HashSet<Key>> {
        let list = self.lists.get_mut(kind)?;
        let seen = list.seen.take()?;
        list.was_complete = true;
        Some(seen)
    }

    /// What is known of a kind and was not in a list of it, in order.
    pub fn missing(&self, kind: &str, seen: &HashSet<Key>) -> Vec<Key> {
        let gone = self.objects.keys().filter(|key| key.0 == kind && !seen.contains(*key));
        let mut gone: Vec<Key> = gone.cloned().collect();
        gone.sort();
        gone
    }
}
