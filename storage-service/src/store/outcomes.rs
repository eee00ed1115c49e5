//! Outcomes: what was said of findings, and how their predictions ended. A tree of its own, so that they outlive the
//! findings and the rebuilding of indexes.
//!
//! | key | value |
//! |---|---|
//! | `f` finding | version, [`Feedback`] as JSON |
//! | `s` finding | version, [`Scored`] as JSON |
//! | `s` finding what | the same, of a prediction that is not about the cause itself: scenario and entity |
//! | `r` cluster `00` cause | version, time up to which outcomes are forgotten; an empty name stands for all |

use std::collections::BTreeSet;

use tapio_schemas::learning::Feedback;
use tapio_schemas::{FindingId, SmolStr, UnixNanos};

use super::record::StoredFinding;
use super::{Store, StoreError};
use crate::learning::{LearntCause, Scored, learn};

/// Name of the tree.
pub(super) const TREE: &str = "outcomes";
const FEEDBACK: u8 = b'f';
const SCORED: u8 = b's';
const RESET: u8 = b'r';
/// First byte of every value. Each version is read for ever.
const VERSION_1: u8 = 1;
/// Outcomes kept of each kind; the oldest go first. Far more than weigh.
const OUTCOMES_MAX: usize = 10_000;
/// Outcomes removed at a time, so that they are not counted at each new one.
const OUTCOMES_STEP: usize = 256;

/// An outcome that is stored under the id of its finding.
trait Outcome: serde::Serialize + serde::de::DeserializeOwned {
    const KIND: u8;
    fn finding(&self) -> FindingId;
    fn at(&self) -> UnixNanos;
    /// Tells several of one finding apart.
    fn what(&self) -> &str {
        ""
    }
}

impl Outcome for Feedback {
    const KIND: u8 = FEEDBACK;
    fn finding(&self) -> FindingId {
        self.finding
    }
    fn at(&self) -> UnixNanos {
        self.at
    }
}

impl Outcome for Scored {
    const KIND: u8 = SCORED;
    fn finding(&self) -> FindingId {
        self.finding
    }
    fn what(&self) -> &str {
        self.of.as_deref().unwrap_or_default()
    }
    fn at(&self) -> UnixNanos {
        self.at
    }
}

impl Store {
    /// Keeps what was said of a finding, instead of what was said before; returns when it is on disk.
    ///
    /// # Errors
    /// As [`Store::put`].
    pub fn put_feedback(&self, feedback: &Feedback) -> Result<(), StoreError> {
        self.refuse_when_poisoned()?;
        self.refuse_without_room(feedback.note.len() as u64)?;
        self.put_outcome(feedback)?;
        self.db.flush().map(|_| ()).map_err(|error| self.poison(error))
    }

    /// What was said of a finding.
    ///
    /// # Errors
    /// [`StoreError::Read`], [`StoreError::Corrupt`].
    pub fn feedback(&self, id: FindingId) -> Result<Option<Feedback>, StoreError> {
        let bytes = self.outcomes.get(key::<Feedback>(id, "")).map_err(StoreError::Read)?;
        bytes.map(|bytes| decode(id, &bytes)).transpose()
    }

    /// All that was said, by finding.
    ///
    /// # Errors
    /// As [`Store::feedback`].
    pub fn all_feedback(&self) -> Result<Vec<Feedback>, StoreError> {
        self.all_outcomes()
    }

    /// What outcomes say of the causes.
    ///
    /// # Errors
    /// As [`Store::feedback`].
    pub fn learnt(&self) -> Result<Vec<LearntCause>, StoreError> {
        let (feedback, scored) = (self.all_outcomes::<Feedback>()?, self.all_outcomes::<Scored>()?);
        let resets = self.resets()?;
        let forgotten = |cluster: &str, cause: &str| {
            let covering = resets.iter().filter(|(of, what, _)| covers(of, cluster) && covers(what, cause));
            covering.map(|(_, _, at)| *at).max().unwrap_or_default()
        };
        Ok(learn(&feedback, &scored, &forgotten))
    }

    /// Clusters of which there are outcomes, forgotten ones too: their priors are to be told.
    ///
    /// # Errors
    /// As [`Store::feedback`].
    pub fn clusters_with_outcomes(&self) -> Result<BTreeSet<SmolStr>, StoreError> {
        let said = self.all_outcomes::<Feedback>()?.into_iter().map(|said| said.cluster);
        Ok(said.chain(self.all_outcomes::<Scored>()?.into_iter().map(|scored| scored.cluster)).collect())
    }

    /// Forgets what was learnt up to `at`; an empty name stands for all. Returns how many causes it concerns.
    ///
    /// # Errors
    /// As [`Store::put`].
    pub fn forget_learnt(&self, cluster: &str, cause: &str, at: UnixNanos) -> Result<u32, StoreError> {
        self.refuse_when_poisoned()?;
        let learnt = self.learnt()?;
        let concerned =
            learnt.iter().filter(|l| covers(cluster, &l.cluster) && covers(cause, &l.cause)).count();
        // Else anybody could fill the disk with names.
        if concerned > 0 {
            let key = [&[RESET], cluster.as_bytes(), &[0], cause.as_bytes()].concat();
            let value = [&[VERSION_1][..], &at.0.to_be_bytes()].concat();
            let written = self.outcomes.insert(key, value).and_then(|_| self.db.flush());
            written.map_err(|error| self.poison(error))?;
        }
        Ok(u32::try_from(concerned).unwrap_or(u32::MAX))
    }

    /// Keeps how predictions ended, before the findings themselves are stored; returns whether any is new.
    pub(super) fn note_scored(&self, stored: &[std::sync::Arc<StoredFinding>]) -> Result<bool, StoreError> {
        let mut news = false;
        let scored = stored.iter().flat_map(|stored| Scored::all(&stored.finding, stored.stored_at));
        for scored in scored {
            let key = key::<Scored>(scored.finding, scored.what());
            let before = self.outcomes.get(key).map_err(StoreError::Read)?;
            let before: Option<Scored> =
                before.map(|bytes| decode(scored.finding, &bytes)).transpose().unwrap_or_default();
            // A later revision says the same again.
            let same = |before: &Scored| (&before.cause, before.came) == (&scored.cause, scored.came);
            if !before.as_ref().is_some_and(same) {
                self.put_outcome(&scored)?;
                news = true;
            }
        }
        Ok(news)
    }

    fn put_outcome<O: Outcome>(&self, outcome: &O) -> Result<(), StoreError> {
        let mut value = vec![VERSION_1];
        serde_json::to_writer(&mut value, outcome).map_err(|error| StoreError::Transfer(error.into()))?;
        self.make_room::<O>()?;
        let put = self.outcomes.insert(key::<O>(outcome.finding(), outcome.what()), value);
        put.map(|_| ()).map_err(|error| self.poison(error))
    }

    fn make_room<O: Outcome>(&self) -> Result<(), StoreError> {
        if self.outcomes.scan_prefix([O::KIND]).count() < OUTCOMES_MAX {
            return Ok(());
        }
        let all = self.all_outcomes::<O>()?;
        let mut oldest: Vec<(UnixNanos, Vec<u8>)> =
            all.iter().map(|outcome| (outcome.at(), key::<O>(outcome.finding(), outcome.what()))).collect();
        oldest.sort_unstable();
        for (_, key) in oldest.into_iter().take(OUTCOMES_STEP) {
            self.outcomes.remove(key).map_err(|error| self.poison(error))?;
        }
        self.metrics.removed("outcomes", OUTCOMES_STEP as u64);
        Ok(())
    }

    /// A damaged one is left out and counted: it must not keep the others from being learnt from.
    fn all_outcomes<O: Outcome>(&self) -> Result<Vec<O>, StoreError> {
        let mut all = Vec::new();
        for item in self.outcomes.scan_prefix([O::KIND]) {
            let (key, value) = item.map_err(StoreError::Read)?;
            let id = key.get(1..17).and_then(|id| id.try_into().ok()).map(u128::from_be_bytes);
            match decode(FindingId(id.unwrap_or_default()), &value) {
                Ok(outcome) => all.push(outcome),
                Err(error) => {
                    self.metrics.unreadable.inc();
                    tracing::error!(%error, "an outcome is not learnt from");
                }
            }
        }
        Ok(all)
    }

    fn resets(&self) -> Result<Vec<(String, String, UnixNanos)>, StoreError> {
        let mut resets = Vec::new();
        for item in self.outcomes.scan_prefix([RESET]) {
            let (key, value) = item.map_err(StoreError::Read)?;
            let names = String::from_utf8_lossy(&key[1..]).into_owned();
            let time = value.strip_prefix(&[VERSION_1]).and_then(|at| <[u8; 8]>::try_from(at).ok());
            let (Some((cluster, cause)), Some(at)) = (names.split_once('\0'), time) else {
                return Err(StoreError::CorruptKey(names));
            };
            let at = UnixNanos(u64::from_be_bytes(at));
            resets.push((cluster.to_owned(), cause.to_owned(), at));
        }
        Ok(resets)
    }
}

/// An empty name stands for all.
fn covers(name: &str, wanted: &str) -> bool {
    name.is_empty() || name == wanted
}

fn key<O: Outcome>(finding: FindingId, what: &str) -> Vec<u8> {
    [&[O::KIND][..], &finding.0.to_be_bytes(), what.as_bytes()].concat()
}

fn decode<O: serde::de::DeserializeOwned>(id: FindingId, bytes: &[u8]) -> Result<O, StoreError> {
    let corrupt = |reason: String| StoreError::Corrupt { id, revision: 0, reason };
    match bytes.split_first() {
        Some((&VERSION_1, json)) => serde_json::from_slice(json).map_err(|error| corrupt(error.to_string())),
        Some((version, _)) => Err(corrupt(format!("outcome version {version} is unknown"))),
        None => Err(corrupt("its outcome is empty".to_owned())),
    }
}
