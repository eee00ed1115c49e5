//! What conversions of foreign formats share: deterministic seeds for ids, bounded text, owner names.
//!
//! Ids are functions of the content, so that a retry of an exporter, a relist of the API server or a second
//! replay of a recording gives the same ids and the stream's consumers can tell a repetition.

pub mod secrets;

use smol_str::SmolStr;
use tapio_schemas::ids::{EventId, UnixNanos};

/// Alphabet of the suffixes that Kubernetes generates: no vowels, nothing that looks like another character.
const GENERATED_ALPHABET: &str = "bcdfghjklmnpqrstvwxz2456789";

/// Parts of an id, each with its length before it, so that they cannot run into each other.
#[derive(Clone, Default)]
pub struct Seed(Vec<u8>);

impl Seed {
    /// A seed that begins with the name of what is identified.
    pub fn new(what: &str) -> Self {
        Self::default().text(what)
    }

    /// Adds text.
    #[must_use]
    pub fn text(self, text: &str) -> Self {
        self.bytes(text.as_bytes())
    }

    /// Adds bytes.
    #[must_use]
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.0.extend_from_slice(bytes);
        self
    }

    /// Adds a number.
    #[must_use]
    pub fn number(self, number: u128) -> Self {
        self.bytes(&number.to_le_bytes())
    }

    /// The id of an event at that time.
    pub fn event(&self, at: UnixNanos) -> EventId {
        EventId::derive(at, &self.0)
    }

    /// 128-bit hash of what was added.
    pub fn hash(&self) -> u128 {
        xxhash_rust::xxh3::xxh3_128(&self.0)
    }
}

/// Text of at most `max` bytes, cut at a character.
pub fn cut(text: &str, max: usize) -> SmolStr {
    if text.len() <= max {
        return SmolStr::new(text);
    }
    SmolStr::new(&text[..text.floor_char_boundary(max)])
}

/// Name of the Deployment that made a ReplicaSet, when the name ends in a pod template hash.
///
/// The hash has 6 to 10 characters of Kubernetes' own alphabet; a ReplicaSet made by hand keeps its name.
pub fn deployment_of_replica_set(name: &str) -> Option<&str> {
    without_suffix(name, |suffix| {
        (6..=10).contains(&suffix.len()) && suffix.chars().all(|c| GENERATED_ALPHABET.contains(c))
    })
}

/// Name of the Deployment of a pod, when the name has the form that its ReplicaSet gives: hash and five characters.
pub fn deployment_of_pod(name: &str) -> Option<&str> {
    let replica_set = without_suffix(name, |suffix| {
        suffix.len() == 5 && suffix.chars().all(|c| GENERATED_ALPHABET.contains(c))
    });
    deployment_of_replica_set(replica_set?)
}

/// Name of the CronJob that made a Job, when the name ends in a time in minutes since the epoch.
pub fn cron_job_of_job(name: &str) -> Option<&str> {
    without_suffix(name, |suffix| suffix.len() == 8 && suffix.bytes().all(|b| b.is_ascii_digit()))
}

fn without_suffix(name: &str, is_generated: impl Fn(&str) -> bool) -> Option<&str> {
    let (base, suffix) = name.rsplit_once('-')?;
    (!base.is_empty() && is_generated(suffix)).then_some(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_seed_do_not_run_into_each_other() {
        let at = UnixNanos(5_000_000);
        assert_ne!(Seed::new("a").text("bc").event(at), Seed::new("ab").text("c").event(at));
        assert_eq!(Seed::new("a").text("bc").event(at), Seed::new("a").text("bc").event(at));
    }

    #[test]
    fn text_is_cut_at_a_character() {
        assert_eq!(cut("häuser", 2), "h");
        assert_eq!(cut("häuser", 3), "hä");
        assert_eq!(cut("häuser", 99), "häuser");
    }

    #[test]
    fn owners_are_read_from_generated_names() {
        assert_eq!(deployment_of_replica_set("adservice-5f6585d649"), Some("adservice"));
        assert_eq!(deployment_of_replica_set("my-cache"), None);
        assert_eq!(deployment_of_replica_set("api-release"), None);
        assert_eq!(deployment_of_pod("adservice-5f6585d649-fnmft"), Some("adservice"));
        assert_eq!(deployment_of_pod("redis-0"), None);
        assert_eq!(deployment_of_pod("agent-fnmft"), None, "of a DaemonSet, perhaps");
        assert_eq!(cron_job_of_job("backup-29012345"), Some("backup"));
        assert_eq!(cron_job_of_job("migrate-2"), None);
    }
}
