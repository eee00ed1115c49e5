//! How each watch stands: whether it works, since when, and when the server was last heard. Every answer says what was
//! not seen.

use std::time::Duration;

use smol_str::SmolStr;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::status::{WatchState, WatchStatus};

use super::reflector::Change;
use super::watched::Watched;
use crate::collectors::CollectorState;
use crate::gap::Gap;

/// A watch that has not been heard for this long is stale. One that works is heard at least every 60 s.
pub const STALE_AFTER: Duration = Duration::from_secs(90);
/// A watch that fails for less is not worth a word in an answer.
const FAILS_FOR: Duration = Duration::from_secs(5);
/// While something is not seen, this is told so often.
pub const TELL_EVERY: Duration = Duration::from_secs(30);
/// Kinds named in one sentence; the others are counted.
const NAMED_MAX: usize = 12;
/// Letters of a reason.
const REASON_CHARS_MAX: usize = 200;

/// One watch.
#[derive(Debug, Clone)]
struct Standing {
    watched: Watched,
    state: WatchState,
    /// A list has begun and has not ended.
    is_listing: bool,
    /// Since when.
    since: UnixNanos,
    /// When the server last said something of it.
    heard_at: UnixNanos,
    reason: String,
}

/// All watches, in their order.
#[derive(Debug, Clone)]
pub struct Standings {
    watches: Vec<Standing>,
    /// Parts of the configuration that make no sense.
    refused: Vec<String>,
    told_at: UnixNanos,
    is_changed: bool,
}

impl Standings {
    /// Nothing has been heard yet.
    pub fn new(kinds: &[Watched], refused: Vec<String>, now: UnixNanos) -> Self {
        let standing = |watched: &Watched| Standing {
            watched: watched.clone(),
            state: WatchState::Listing,
            is_listing: false,
            since: now,
            heard_at: now,
            reason: String::new(),
        };
        // The first time soon after the first lists.
        let told_at = now.minus((TELL_EVERY - FAILS_FOR).as_nanos() as u64);
        Self { watches: kinds.iter().map(standing).collect(), refused, told_at, is_changed: true }
    }

    /// Kind of the objects of a watch.
    pub fn kind(&self, place: usize) -> SmolStr {
        self.watches.get(place).map(|standing| standing.watched.kind.clone()).unwrap_or_default()
    }

    /// Takes note of what a watch says.
    pub fn note(&mut self, place: usize, change: &Change, now: UnixNanos) {
        let Some(standing) = self.watches.get_mut(place) else { return };
        let before = standing.state;
        let (state, reason) = match change {
            Change::ListBegins(kind) => {
                standing.watched.kind = kind.clone();
                standing.is_listing = true;
                // Said before the server is asked: whether it answers is not known yet.
                return;
            }
            Change::Listed(_) | Change::Applied(_) | Change::Deleted(_) | Change::Alive => {
                standing.heard_at = now;
                // Whatever comes before the end of a list, the rest of it is not known; who reads it again knows the last one.
                let is_known = !standing.is_listing || before == WatchState::Live;
                (if is_known { WatchState::Live } else { WatchState::Listing }, String::new())
            }
            Change::ListEnds => {
                standing.heard_at = now;
                (WatchState::Live, String::new())
            }
            Change::Failed(reason) => (WatchState::Failing, reason.chars().take(REASON_CHARS_MAX).collect()),
            Change::Forbidden(said) => (WatchState::Forbidden, said.chars().take(REASON_CHARS_MAX).collect()),
            Change::Absent => {
                standing.heard_at = now;
                (WatchState::Absent, String::new())
            }
        };
        standing.is_listing &=
            matches!(change, Change::Listed(_) | Change::Applied(_) | Change::Deleted(_) | Change::Alive);
        if before != state || standing.reason != reason {
            self.is_changed = true;
        }
        if before != state {
            standing.since = now;
            log(&standing.watched, before, state, &reason);
        }
        (standing.state, standing.reason) = (state, reason);
    }

    /// The state of the collector, when it has changed since the last look.
    pub fn news(&mut self) -> Option<CollectorState> {
        if !std::mem::take(&mut self.is_changed) {
            return None;
        }
        let mut wrong = self.refused.clone();
        wrong.extend(self.forbidden());
        wrong.extend(self.failing(|_| true));
        wrong.extend(self.absent());
        Some(if wrong.is_empty() {
            CollectorState::Running
        } else {
            CollectorState::Degraded(wrong.join("; "))
        })
    }

    /// What each watch says of itself.
    pub fn words(&self, now: UnixNanos) -> Vec<WatchStatus> {
        let word = |standing: &Standing| WatchStatus {
            name: standing.watched.name(),
            state: standing.state_at(now),
            since: standing.since,
            heard_at: standing.heard_at,
            reason: standing.reason.clone(),
        };
        self.watches.iter().map(word).collect()
    }

    /// What is not seen, as gaps without a loss: at most one for each way, every [`TELL_EVERY`] while it lasts.
    pub fn gaps(&mut self, now: UnixNanos) -> Vec<Gap> {
        if now.since(self.told_at) < TELL_EVERY.as_nanos() as u64 {
            return Vec::new();
        }
        self.told_at = now;
        let fails = |standing: &Standing| now.since(standing.heard_at) >= FAILS_FOR.as_nanos() as u64;
        let gap = |says: Option<(String, UnixNanos)>| {
            says.map(|(reason, from)| Gap { source: "kubernetes", reason, lost: 0, from, to: now })
        };
        let forbidden = self.forbidden().zip(self.oldest(|s| s.state == WatchState::Forbidden, |s| s.since));
        let failing = self.failing(fails);
        let stale = |standing: &Standing| standing.is_blind(now) && fails(standing);
        let failing = failing.zip(self.oldest(stale, |s| s.heard_at));
        [gap(forbidden), gap(failing), gap(self.silent(now))].into_iter().flatten().collect()
    }

    /// Time for which the longest silent of the watches that should speak has not been heard.
    pub fn silence(&self, now: UnixNanos) -> Duration {
        let speaks = |s: &&Standing| !matches!(s.state, WatchState::Forbidden | WatchState::Absent);
        let silences = self.watches.iter().filter(speaks).map(|standing| now.since(standing.heard_at));
        Duration::from_nanos(silences.max().unwrap_or_default())
    }

    fn forbidden(&self) -> Option<String> {
        let of: Vec<&Standing> = self.watches.iter().filter(|s| s.state == WatchState::Forbidden).collect();
        let first = of.first()?;
        let tells = names(&of, |s| s.watched.tells.to_string());
        let grant = match of.as_slice() {
            [one] => one.watched.permission(),
            many => format!("grant get, list and watch of {}", names(many, |s| s.watched.name())),
        };
        let said = if of.len() == 1 { format!(": {}", first.reason) } else { String::new() };
        Some(format!("not allowed to see {tells}: {grant}{said}"))
    }

    fn failing(&self, filter: impl Fn(&Standing) -> bool) -> Option<String> {
        let is_failing = |s: &&Standing| s.state == WatchState::Failing && filter(s);
        let of: Vec<&Standing> = self.watches.iter().filter(is_failing).collect();
        let first = of.first()?;
        Some(format!("cannot watch {}: {}", names(&of, |s| s.watched.name()), first.reason))
    }

    fn absent(&self) -> Option<String> {
        let is_missed =
            |s: &&Standing| s.state == WatchState::Absent && (s.watched.is_standard || s.watched.is_custom);
        let of: Vec<&Standing> = self.watches.iter().filter(is_missed).collect();
        of.first()?;
        Some(format!("the API server does not have {}", names(&of, |s| s.watched.name())))
    }

    /// Watches that do not know yet that nobody is there.
    fn silent(&self, now: UnixNanos) -> Option<(String, UnixNanos)> {
        let is_silent = |s: &&Standing| s.state != WatchState::Failing && s.is_blind(now);
        let of: Vec<&Standing> = self.watches.iter().filter(is_silent).collect();
        let from = of.iter().map(|standing| standing.heard_at).min()?;
        Some((format!("nothing is heard of {}", names(&of, |s| s.watched.name())), from))
    }

    fn oldest(
        &self,
        filter: impl Fn(&Standing) -> bool,
        time: impl Fn(&Standing) -> UnixNanos,
    ) -> Option<UnixNanos> {
        self.watches.iter().filter(|standing| filter(standing)).map(time).min()
    }
}

impl Standing {
    /// It should be heard and is not.
    fn is_blind(&self, now: UnixNanos) -> bool {
        match self.state {
            WatchState::Failing => true,
            WatchState::Live | WatchState::Listing | WatchState::Stale => {
                now.since(self.heard_at) > STALE_AFTER.as_nanos() as u64
            }
            WatchState::Forbidden | WatchState::Absent => false,
        }
    }

    fn state_at(&self, now: UnixNanos) -> WatchState {
        let is_stale = self.state == WatchState::Live && self.is_blind(now);
        if is_stale { WatchState::Stale } else { self.state }
    }
}

fn names(of: &[&Standing], name: impl Fn(&Standing) -> String) -> String {
    let mut names: Vec<String> = of.iter().map(|standing| name(standing)).collect();
    names.dedup();
    let more = names.len().saturating_sub(NAMED_MAX);
    names.truncate(NAMED_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", names.join(", "))
}

fn log(watched: &Watched, before: WatchState, state: WatchState, reason: &str) {
    let name = watched.name();
    match state {
        WatchState::Failing => tracing::warn!(name, reason, "watch failed, trying again"),
        WatchState::Forbidden => {
            tracing::warn!(name, reason, "not allowed to watch: {}", watched.permission())
        }
        WatchState::Absent => tracing::info!(name, "the API server does not have this kind"),
        WatchState::Live if before != WatchState::Listing => tracing::info!(name, "watch works again"),
        WatchState::Live | WatchState::Listing | WatchState::Stale => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collectors::kubernetes::config::KubernetesConfig;
    use crate::collectors::kubernetes::reflector::Said;
    use crate::collectors::kubernetes::summary::NotAnObject;
    use crate::collectors::kubernetes::watched;

    fn second(s: u64) -> UnixNanos {
        UnixNanos(1_900_000_000_000_000_000 + s * 1_000_000_000)
    }

    fn place(of: &[Watched], kind: &str) -> usize {
        of.iter().position(|watched| watched.kind == kind).unwrap()
    }

    /// All work from second 0 on.
    fn working() -> (Standings, Vec<Watched>) {
        let (kinds, refused) = watched::of(&KubernetesConfig::default());
        let mut standings = Standings::new(&kinds, refused, second(0));
        (0..kinds.len()).for_each(|at| standings.note(at, &Change::ListEnds, second(0)));
        assert_eq!(standings.news(), Some(CollectorState::Running));
        assert_eq!(standings.news(), None);
        (standings, kinds)
    }

    #[test]
    fn a_forbidden_kind_is_named_with_what_is_not_seen_and_the_permission() {
        let (mut standings, kinds) = working();
        standings.note(place(&kinds, "ConfigMap"), &Change::Forbidden("no".to_owned()), second(5));
        let says = "not allowed to see changed configuration: grant get, list and watch of configmaps in all namespaces: no";
        assert_eq!(standings.news(), Some(CollectorState::Degraded(says.to_owned())));
        (0..kinds.len()).filter(|at| *at != place(&kinds, "ConfigMap")).for_each(|at| {
            standings.note(at, &Change::Alive, second(40));
        });
        let gaps = standings.gaps(second(40));
        assert_eq!(gaps.len(), 1);
        assert_eq!((gaps[0].reason.as_str(), gaps[0].from, gaps[0].lost), (says, second(5), 0));
        assert!(standings.gaps(second(41)).is_empty(), "told just now");
        standings.note(place(&kinds, "ConfigMap"), &Change::ListEnds, second(50));
        assert_eq!(standings.news(), Some(CollectorState::Running));
        assert!(standings.gaps(second(80)).is_empty());
    }

    #[test]
    fn a_watch_that_fails_or_falls_silent_is_told_with_when_it_was_last_heard() {
        let (mut standings, kinds) = working();
        let (pods, nodes) = (place(&kinds, "Pod"), place(&kinds, "Node"));
        standings.note(pods, &Change::Failed("503: away".to_owned()), second(10));
        assert_eq!(
            standings.news(),
            Some(CollectorState::Degraded("cannot watch pods: 503: away".to_owned()))
        );
        (0..kinds.len()).filter(|at| *at != nodes && *at != pods).for_each(|at| {
            standings.note(at, &Change::Alive, second(95));
        });
        let gaps = standings.gaps(second(100));
        let said: Vec<_> = gaps.iter().map(|gap| (gap.reason.as_str(), gap.from)).collect();
        let expected =
            [("cannot watch pods: 503: away", second(0)), ("nothing is heard of nodes", second(0))];
        assert_eq!(said, expected);
        assert_eq!(standings.silence(second(100)), Duration::from_secs(100));
        let words = standings.words(second(100));
        let state = |name: &str| words.iter().find(|word| word.name == name).unwrap().state;
        let states = (state("pods"), state("nodes"), state("services"));
        assert_eq!(states, (WatchState::Failing, WatchState::Stale, WatchState::Live));
    }

    #[test]
    fn a_watch_works_once_its_list_has_come_to_its_end_whatever_is_said_before() {
        let (kinds, refused) = watched::of(&KubernetesConfig::default());
        let mut standings = Standings::new(&kinds, refused, second(0));
        let mut after = |change: Change| {
            standings.note(0, &change, second(1));
            standings.words(second(1))[0].state
        };
        let begins = || Change::ListBegins(kinds[0].kind.clone());
        let deleted = || Change::Deleted(Said::Malformed(NotAnObject("kind")));
        let fails = || Change::Failed("away".to_owned());
        let told = [begins(), Change::Alive, deleted(), Change::Alive].map(&mut after);
        assert_eq!(told, [WatchState::Listing; 4]);
        // Tried again: that it is asked for is no sign that the server answers.
        let told = [fails(), begins(), deleted(), Change::Alive, Change::ListEnds].map(&mut after);
        let (failing, listing) = (WatchState::Failing, WatchState::Listing);
        assert_eq!(told, [failing, failing, listing, listing, WatchState::Live]);
        // A watch that is resumed needs no list, and one that reads its list again knows the one before.
        let told = [fails(), Change::Alive, begins(), deleted(), Change::ListEnds].map(&mut after);
        assert_eq!(told, [failing, WatchState::Live, WatchState::Live, WatchState::Live, WatchState::Live]);
        assert_eq!([begins(), fails(), Change::Alive].map(&mut after)[2], WatchState::Live, "resumed");
    }

    #[test]
    fn a_kind_that_need_not_be_there_is_not_missed() {
        let (mut standings, kinds) = working();
        standings.note(place(&kinds, "Gateway"), &Change::Absent, second(5));
        assert_eq!(standings.news(), Some(CollectorState::Running));
        standings.note(place(&kinds, "EndpointSlice"), &Change::Absent, second(5));
        let says = "the API server does not have endpointslices.discovery.k8s.io".to_owned();
        assert_eq!(standings.news(), Some(CollectorState::Degraded(says)));
    }
}
