//! This replica's own place in the group.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use super::lease::Validity;
use super::record::Identity;

/// Where this replica stands.
pub(super) enum Phase {
    /// Not a member; tries again at this time.
    Outside { retry_at: Duration },
    /// Its key is being made.
    Joining,
    /// A member.
    Inside(Member),
    /// Its key is being removed.
    Leaving,
    /// Done.
    Left,
}

/// A membership.
pub(super) struct Member {
    pub identity: Identity,
    /// Revision of our key.
    pub revision: u64,
    pub validity: Arc<Validity>,
    pub renew_at: Duration,
    pub renewing: bool,
}

impl Phase {
    pub(super) fn member(&self) -> Option<&Member> {
        match self {
            Self::Inside(member) => Some(member),
            _ => None,
        }
    }
}

/// A new incarnation: random, so that no one else has it, not even on a machine that was copied.
pub(super) fn new_incarnation() -> String {
    let random = || std::collections::hash_map::RandomState::new().build_hasher().finish();
    format!("{:016x}", random())
}
