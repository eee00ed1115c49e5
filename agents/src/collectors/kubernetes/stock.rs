//! The objects that are known, how many there are of each kind, and which kinds are being listed.

use std::collections::{BTreeSet, HashMap, HashSet};

use smol_str::SmolStr;
use tapio_schemas::entity::kinds;

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
    /// By kind and namespace.
    counts: HashMap<SmolStr, HashMap<SmolStr, usize>>,
    /// Names of the pods of each namespace.
    pods: HashMap<SmolStr, BTreeSet<SmolStr>>,
    /// Namespaces and names of the pods of each machine.
    placed: HashMap<SmolStr, BTreeSet<(SmolStr, SmolStr)>>,
    lists: HashMap<SmolStr, List>,
}

/// How it stands with the lists of a kind. A kind of which no list ever began, as in a recording or a dump, has no such thing.
#[derive(Debug, Default)]
struct List {
    /// What has been seen in the list that is under way.
    seen: Option<HashSet<Key>>,
    /// One was read to its end.
    was_complete: bool,
    /// The only namespace of which there was one; none for all.
    only: Option<SmolStr>,
}

impl Stock {
    pub fn get(&self, key: &Key) -> Option<&Summary> {
        self.objects.get(key)
    }

    pub fn find(&self, kind: &'static str, namespace: &SmolStr, name: &SmolStr) -> Option<&Summary> {
        self.objects.get(&(SmolStr::new_static(kind), namespace.clone(), name.clone()))
    }

    /// Pods of a namespace, by name.
    pub fn pods_of(&self, namespace: &SmolStr) -> impl Iterator<Item = &Summary> {
        let names = self.pods.get(namespace).into_iter().flatten();
        names.filter_map(|name| self.find(kinds::POD, namespace, name))
    }

    /// Pods of a machine, by namespace and name.
    pub fn pods_on(&self, node: &SmolStr) -> impl Iterator<Item = &Summary> {
        let names = self.placed.get(node).into_iter().flatten();
        names.filter_map(|(namespace, name)| self.find(kinds::POD, namespace, name))
    }

    /// All pods, in no order.
    pub fn pods(&self) -> impl Iterator<Item = &Summary> {
        let names = self.pods.iter().flat_map(|(space, names)| names.iter().map(move |name| (space, name)));
        names.filter_map(|(namespace, name)| self.find(kinds::POD, namespace, name))
    }

    pub fn len(&self) -> usize {
        self.objects.len()
    }

    pub fn insert(&mut self, key: Key, object: Summary) {
        self.remove(&key);
        let spaces = self.counts.entry(key.0.clone()).or_default();
        *spaces.entry(key.1.clone()).or_default() += 1;
        if let Some(pod) = object.pod() {
            self.pods.entry(key.1.clone()).or_default().insert(key.2.clone());
            if !pod.node.is_empty() {
                let placed = (key.1.clone(), key.2.clone());
                self.placed.entry(pod.node.clone()).or_default().insert(placed);
            }
        }
        self.objects.insert(key, object);
    }

    pub fn remove(&mut self, key: &Key) -> Option<Summary> {
        let object = self.objects.remove(key)?;
        take_one(&mut self.counts, key);
        if let Some(pod) = object.pod() {
            take(&mut self.pods, &key.1, &key.2);
            take(&mut self.placed, &pod.node, &(key.1.clone(), key.2.clone()));
        }
        Some(object)
    }

    /// True when what is not there of this kind is known not to be, in whatever namespace: others of it are, and no list was cut
    /// short before any was complete, nor was it of one namespace alone.
    pub fn knows(&self, kind: &str) -> bool {
        let is_whole = |list: &List| list.was_complete && list.only.is_none();
        let is_readable = self.lists.get(kind).is_none_or(is_whole);
        is_readable && self.counts.contains_key(kind)
    }

    /// The same of one namespace: a list of it was read to its end, or, where none ever began, others of it are there.
    pub fn knows_in(&self, kind: &str, namespace: &SmolStr) -> bool {
        match self.lists.get(kind) {
            Some(list) => list.was_complete && list.only.as_ref().is_none_or(|only| only == namespace),
            None => self.counts.get(kind).is_some_and(|spaces| spaces.contains_key(namespace)),
        }
    }

    /// A list of a kind was read to its end, of one namespace or of all; what was in it is told one by one.
    pub fn was_listed(&mut self, kind: &SmolStr, only: Option<&SmolStr>) {
        let list = List { seen: None, was_complete: true, only: only.cloned() };
        self.lists.insert(kind.clone(), list);
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

    /// Takes it back: the object was deleted while its list is under way.
    pub fn note_deleted(&mut self, key: &Key) {
        if let Some(seen) = self.lists.get_mut(&key.0).and_then(|list| list.seen.as_mut()) {
            seen.remove(key);
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

fn take_one(counts: &mut HashMap<SmolStr, HashMap<SmolStr, usize>>, (kind, namespace, _): &Key) {
    let Some(spaces) = counts.get_mut(kind) else { return };
    if let Some(count) = spaces.get_mut(namespace) {
        *count -= 1;
        if *count == 0 {
            spaces.remove(namespace);
        }
    }
    if spaces.is_empty() {
        counts.remove(kind);
    }
}

/// Takes a name from those of a place, and the place with its last name.
fn take<T: Ord>(names: &mut HashMap<SmolStr, BTreeSet<T>>, place: &SmolStr, name: &T) {
    if let Some(all) = names.get_mut(place) {
        all.remove(name);
        if all.is_empty() {
            names.remove(place);
        }
    }
}

/// A key of tests.
#[cfg(test)]
pub(super) fn numbered(n: usize) -> Key {
    ("Pod".into(), "shop".into(), n.to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(namespace: &str, name: &str, node: &str) -> Summary {
        let pod = json!({"kind": "Pod", "metadata": {"name": name, "namespace": namespace}, "spec": {"nodeName": node}});
        Summary::of(&pod).unwrap()
    }

    fn names<'a>(pods: impl Iterator<Item = &'a Summary>) -> Vec<String> {
        pods.map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect()
    }

    #[test]
    fn pods_are_found_by_their_namespace_and_by_their_machine() {
        let mut stock = Stock::default();
        let service =
            json!({"kind": "Service", "metadata": {"name": "api", "namespace": "shop"}, "spec": {}});
        let service = Summary::of(&service).unwrap();
        stock.insert(key_of(&service), service);
        for pod in [pod("shop", "b", "n1"), pod("shop", "a", ""), pod("bank", "c", "n1")] {
            stock.insert(key_of(&pod), pod);
        }
        assert_eq!(names(stock.pods_of(&"shop".into())), ["shop/a", "shop/b"]);
        assert_eq!(names(stock.pods_on(&"n1".into())), ["bank/c", "shop/b"]);
        // It is bound.
        let bound = pod("shop", "a", "n2");
        stock.insert(key_of(&bound), bound);
        assert_eq!(names(stock.pods_on(&"n2".into())), ["shop/a"]);
        assert_eq!(stock.pods().count(), 3);
        for (namespace, name) in [("shop", "a"), ("shop", "b"), ("bank", "c")] {
            stock.remove(&("Pod".into(), namespace.into(), name.into()));
        }
        assert!(stock.pods.is_empty() && stock.placed.is_empty() && !stock.knows("Pod"));
        assert!(stock.knows_in("Service", &"shop".into()) && !stock.knows_in("Service", &"bank".into()));
    }

    #[test]
    fn what_is_not_in_a_list_that_was_read_to_its_end_is_not_there() {
        let (shop, bank) = ("shop".into(), "bank".into());
        let mut stock = Stock::default();
        assert!(!stock.knows_in("Service", &shop));
        stock.was_listed(&"Service".into(), Some(&shop));
        assert!(stock.knows_in("Service", &shop) && !stock.knows_in("Service", &bank));
        // Neither does one of its objects that is known from there.
        let service =
            json!({"kind": "Service", "metadata": {"name": "api", "namespace": "shop"}, "spec": {}});
        let service = Summary::of(&service).unwrap();
        stock.insert(key_of(&service), service);
        assert!(!stock.knows("Service"));
        stock.was_listed(&"Service".into(), None);
        assert!(stock.knows_in("Service", &bank) && stock.knows("Service"));
        // One that is under way for the first time says nothing yet.
        stock.list_begins("Secret");
        assert!(!stock.knows_in("Secret", &shop));
        stock.list_ends("Secret");
        assert!(stock.knows_in("Secret", &shop));
    }
}
