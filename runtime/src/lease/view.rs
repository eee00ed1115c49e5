//! What this member knows of the others, and what follows from it. No input or output, time is given.
//!
//! Safety rests on three things, none of which is that the view is fresh:
//! - every change of a key names the revision it expects, and the server refuses it otherwise;
//! - a member that is not renewed is over by its own clock before anyone who saw the renewal may expel it;
//! - an incarnation that is gone never comes back.

use std::collections::HashMap;
use std::time::Duration;

use super::record::{Identity, LeaseRecord, MemberRecord};
use super::rendezvous;

/// The newest that is known of a member's key.
#[derive(Debug, Clone)]
pub(super) struct MemberView {
    /// Revision of the key.
    pub revision: u64,
    /// `None` when it is gone.
    pub record: Option<MemberRecord>,
    /// When this was seen, by our clock.
    pub seen: Duration,
}

/// The newest that is known of a resource's key.
#[derive(Debug, Clone, Default)]
pub(super) struct ResourceView {
    /// Revision of the key, 0 when there never was a value.
    pub revision: u64,
    /// `None` when there is none.
    pub record: Option<LeaseRecord>,
}

/// Whether the owner that a record names may still work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OwnerState {
    /// No one owns it.
    Free,
    /// It is there, or was not long enough away.
    Alive,
    /// It is gone for ever.
    Dead,
    /// Nothing newer than the record is known of its key: ask.
    Unknown,
}

#[derive(Debug, Default)]
pub(super) struct View {
    members: HashMap<String, MemberView>,
}

impl View {
    pub(super) fn member(&self, replica: &str) -> Option<&MemberView> {
        self.members.get(replica)
    }

    /// Takes in what a member's key is; older news than what is known change nothing.
    pub(super) fn observe(&mut self, replica: &str, view: MemberView) -> bool {
        match self.members.get(replica) {
            Some(known) if known.revision >= view.revision => false,
            _ => {
                self.members.insert(replica.to_owned(), view);
                true
            }
        }
    }

    /// A change that we thought safe was refused: it moves, and the news are on their way.
    pub(super) fn seen_moving(&mut self, replica: &str, now: Duration) {
        if let Some(member) = self.members.get_mut(replica) {
            member.seen = now;
        }
    }

    /// Members that are there, or not yet expelled, sorted.
    pub(super) fn live(&self) -> Vec<&str> {
        let mut live: Vec<_> = self.with_record().map(|(replica, _)| replica).collect();
        live.sort_unstable();
        live
    }

    /// The member that should own a resource.
    pub(super) fn desired(&self, resource: &str) -> Option<&str> {
        let willing = self.with_record().filter(|(_, member)| !member.draining).map(|(replica, _)| replica);
        rendezvous::owner(resource, willing)
    }

    /// Members but `me` that were silent for `ttl`, with the revision that expelling them expects.
    pub(super) fn silent(&self, me: &str, now: Duration, ttl: Duration) -> Vec<(String, u64)> {
        let others =
            self.members.iter().filter(|(replica, member)| *replica != me && member.record.is_some());
        others
            .filter(|(_, member)| now >= member.seen + ttl)
            .map(|(replica, member)| (replica.clone(), member.revision))
            .collect()
    }

    /// When the next member will have been silent for `ttl`.
    pub(super) fn next_silence(&self, me: &str, ttl: Duration) -> Option<Duration> {
        let others =
            self.members.iter().filter(|(replica, member)| *replica != me && member.record.is_some());
        others.map(|(_, member)| member.seen + ttl).min()
    }

    /// Whether the owner of a record with this revision may still work.
    pub(super) fn owner_state(&self, resource: &ResourceView) -> OwnerState {
        let Some(owner) = resource.record.as_ref().and_then(|record| record.owner.as_ref()) else {
            return OwnerState::Free;
        };
        match self.members.get(&owner.replica) {
            Some(member) if is(member, owner) => OwnerState::Alive,
            // The owner's incarnation began before its record, so whatever came to its key later ended it.
            Some(member) if member.revision > resource.revision => OwnerState::Dead,
            _ => OwnerState::Unknown,
        }
    }

    fn with_record(&self) -> impl Iterator<Item = (&str, &MemberRecord)> {
        self.members.iter().filter_map(|(replica, member)| Some((replica.as_str(), member.record.as_ref()?)))
    }
}

fn is(member: &MemberView, owner: &Identity) -> bool {
    member.record.as_ref().is_some_and(|record| record.incarnation == owner.incarnation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    const TTL: Duration = Duration::from_secs(2);

    fn member(revision: u64, incarnation: &str, seen_secs: u64) -> MemberView {
        let record = MemberRecord { incarnation: incarnation.to_owned(), draining: false };
        MemberView { revision, record: Some(record), seen: Duration::from_secs(seen_secs) }
    }

    fn owned(revision: u64, replica: &str, incarnation: &str) -> ResourceView {
        let owner = Identity { replica: replica.into(), incarnation: incarnation.into() };
        let record = LeaseRecord { owner: Some(owner), epoch: None, note: Bytes::new() };
        ResourceView { revision, record: Some(record) }
    }

    #[test]
    fn an_owner_is_dead_only_when_its_key_moved_on_after_the_record() {
        let mut view = View::default();
        assert_eq!(view.owner_state(&ResourceView::default()), OwnerState::Free);
        let resource = owned(10, "a", "one");
        assert_eq!(
            view.owner_state(&resource),
            OwnerState::Unknown,
            "a snapshot may miss a key that was renewed"
        );
        view.observe("a", member(5, "zero", 0));
        assert_eq!(view.owner_state(&resource), OwnerState::Unknown, "older than the record");
        view.observe("a", member(12, "one", 0));
        assert_eq!(view.owner_state(&resource), OwnerState::Alive);
        assert!(!view.observe("a", MemberView { record: None, ..member(11, "", 0) }), "old news");
        assert_eq!(view.owner_state(&resource), OwnerState::Alive);
        view.observe("a", MemberView { record: None, ..member(13, "", 0) });
        assert_eq!(view.owner_state(&resource), OwnerState::Dead);
        view.observe("a", member(14, "two", 0));
        assert_eq!(view.owner_state(&resource), OwnerState::Dead, "the same name, another member");
        // A change of the dead incarnation that was long on its way.
        assert_eq!(view.owner_state(&owned(20, "a", "one")), OwnerState::Unknown);
    }

    #[test]
    fn silence_is_told_by_our_clock_and_taken_back_by_movement() {
        let mut view = View::default();
        view.observe("a", member(1, "x", 10));
        view.observe("me", member(2, "y", 0));
        assert_eq!(view.next_silence("me", TTL), Some(Duration::from_secs(12)));
        assert!(view.silent("me", Duration::from_millis(11_999), TTL).is_empty());
        assert_eq!(view.silent("me", Duration::from_secs(12), TTL), [("a".to_owned(), 1)]);
        view.seen_moving("a", Duration::from_secs(12));
        assert!(view.silent("me", Duration::from_secs(12), TTL).is_empty());
    }

    #[test]
    fn a_draining_member_is_there_and_wants_nothing() {
        let mut view = View::default();
        let mut leaving = member(1, "x", 0);
        leaving.record.as_mut().unwrap().draining = true;
        view.observe("a", leaving);
        assert_eq!((view.live(), view.desired("shard.1")), (vec!["a"], None));
        view.observe("b", member(2, "y", 0));
        assert_eq!(view.desired("shard.1"), Some("b"));
    }
}
