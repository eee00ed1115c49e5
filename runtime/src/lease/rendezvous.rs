//! Who should own what: rendezvous hashing.
//!
//! Each member has a score for each resource and the highest score owns it, so a member that comes takes only what
//! it is now the best for, and what a member leaves is spread over the others. Source: Thaler and Ravishankar, "A
//! name-based mapping scheme for rendezvous", 1996.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The member that should own `resource`; `None` when there are none. Any order of `members` gives the same answer.
pub(super) fn owner<'a>(resource: &str, members: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // The name breaks a tie, or two replicas could disagree.
    members.max_by_key(|member| (score(resource, member), *member))
}

fn score(resource: &str, member: &str) -> u64 {
    xxh3_64_with_seed(resource.as_bytes(), xxh3_64_with_seed(member.as_bytes(), 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn placed(members: &[String]) -> BTreeMap<String, String> {
        let resources = (0..64).map(|shard| format!("shard.{shard}"));
        let owner_of =
            |resource: &String| owner(resource, members.iter().map(String::as_str)).unwrap().to_owned();
        resources.map(|resource| (resource.clone(), owner_of(&resource))).collect()
    }

    #[test]
    fn no_members_no_owner_and_the_answer_is_law() {
        assert_eq!(owner("shard.1", [].into_iter()), None);
        // Replicas of different versions must agree: a change of these is a change of the protocol.
        let owner = |n: u32| owner(&format!("shard.{n}"), ["a", "b", "c"].into_iter()).unwrap();
        let owners: Vec<_> = (0..6).map(owner).collect();
        assert_eq!(owners, ["a", "b", "a", "c", "a", "b"]);
    }

    proptest! {
        /// Only the share of who comes or goes moves.
        #[test]
        fn a_member_more_or_less_moves_only_its_share(count in 1usize..8, seed in 0u32..1000) {
            let members: Vec<String> = (0..count).map(|n| format!("replica-{seed}-{n}")).collect();
            let mut more = members.clone();
            more.push("newcomer".to_owned());
            let (before, mut after) = (placed(&members), placed(&more));
            for (resource, owner) in &before {
                prop_assert!(after[resource] == *owner || after[resource] == "newcomer");
            }
            more.reverse();
            prop_assert_eq!(&placed(&more), &after);
            after.retain(|_, owner| owner == "newcomer");
            prop_assert!(after.len() <= 64);
        }
    }

    #[test]
    fn shares_are_alike() {
        let members: Vec<String> = (0..4).map(|n| format!("correlator-{n}")).collect();
        let placed = placed(&members);
        for member in &members {
            let share = placed.values().filter(|owner| *owner == member).count();
            assert!((6..=28).contains(&share), "{member} has {share} of 64");
        }
    }
}
