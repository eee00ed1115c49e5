//! What a finding foretells elsewhere than where its cause is, and whether it came: callers that will suffer, error budgets
//! that will be used up.

use tapio_schemas::finding::Prediction;
use tapio_schemas::signal::Forecast;
use tapio_schemas::{Entity, SmolStr, UnixNanos};

use super::prediction::{PASSED_SLACK_NS, is_due, outcome};

/// Predictions of a finding that may still come; further things are not foretold meanwhile.
pub const FORESEEN_MAX: usize = 8;
/// Predictions that a finding holds with those that are scored, of which the newest revision is what `tapio predictions`
/// shows. Then what was scored first makes room: an earlier revision has told it.
const HELD_MAX: usize = 32;

/// One prediction.
#[derive(Debug, Clone)]
pub struct Promise {
    /// Of whom.
    pub entity: Entity,
    /// What and when.
    pub forecast: Forecast,
    /// In words, for the story.
    pub says: String,
    /// When it was last set.
    pub at: UnixNanos,
    outcome: &'static str,
    /// When it was scored.
    scored_at: UnixNanos,
}

/// How it stands with what was foretold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stands {
    /// It may still come.
    Open,
    /// It came at this time.
    Came(UnixNanos),
    /// What it rested on went away.
    Gone,
}

impl Promise {
    /// True until it is scored.
    pub fn is_pending(&self) -> bool {
        self.outcome == "pending"
    }

    fn is_of(&self, scenario: &str, entity: &Entity) -> bool {
        self.forecast.scenario == scenario && self.entity == *entity
    }
}

/// All of a finding, in the order in which they were told first.
#[derive(Debug, Clone, Default)]
pub struct Foreseen(Vec<Promise>);

impl Foreseen {
    /// Those that are not scored yet.
    pub fn pending(&self) -> impl Iterator<Item = &Promise> {
        self.0.iter().filter(|promise| promise.is_pending())
    }

    /// True when this was foretold, as far as it is held.
    pub fn knows(&self, scenario: &str, entity: &Entity) -> bool {
        self.0.iter().any(|promise| promise.is_of(scenario, entity))
    }

    /// True when this is foretold and not scored yet.
    pub fn holds(&self, scenario: &str, entity: &Entity) -> bool {
        self.pending().any(|promise| promise.is_of(scenario, entity))
    }

    /// True when nothing more finds room.
    pub fn is_full(&self) -> bool {
        self.pending().count() >= FORESEEN_MAX
    }

    /// Foretells something, or changes what is foretold when it has moved or aged. What is about to come is not changed any
    /// more; what was scored stays, unless its reason had gone away and is there again.
    pub fn tell(
        &mut self,
        entity: &Entity,
        forecast: Forecast,
        says: String,
        now: UnixNanos,
        refresh_ns: u64,
    ) {
        let (entity, scored_at) = (entity.clone(), UnixNanos(0));
        let promise = Promise { entity, forecast, says, at: now, outcome: "pending", scored_at };
        let known = self.0.iter().position(|known| known.is_of(&promise.forecast.scenario, &promise.entity));
        let Some(known) = known else {
            if !self.is_full() {
                self.make_room();
                self.0.push(promise);
            }
            return;
        };
        let is_full = self.is_full();
        let known = &mut self.0[known];
        let is_again = known.outcome == "not_due" && !is_full;
        let moves = || is_due(&known.forecast, &promise.forecast, known.at, now, refresh_ns);
        if is_again || (known.is_pending() && moves()) {
            *known = promise;
        }
    }

    fn make_room(&mut self) {
        if self.0.len() < HELD_MAX {
            return;
        }
        let scored = self.0.iter().enumerate().filter(|(_, promise)| !promise.is_pending());
        if let Some((first, _)) = scored.min_by_key(|(_, promise)| promise.scored_at) {
            self.0.remove(first);
        }
    }

    /// Scores what can be. `stands` says how it stands with each that is pending.
    pub fn score(&mut self, now: UnixNanos, stands: impl Fn(&Promise) -> Stands) {
        for promise in self.0.iter_mut().filter(|promise| promise.is_pending()) {
            match stands(promise) {
                Stands::Came(at) => promise.outcome = outcome(&promise.forecast, at),
                _ if now > promise.forecast.latest.plus(PASSED_SLACK_NS) => promise.outcome = "miss",
                Stands::Gone => promise.outcome = "not_due",
                Stands::Open => continue,
            }
            promise.scored_at = now;
        }
    }

    /// As a finding shows them.
    pub fn predictions(&self) -> Vec<Prediction> {
        let shown = self.0.iter().map(|promise| Prediction {
            entity: Some(promise.entity.clone()),
            scenario: promise.forecast.scenario.clone(),
            probability: promise.forecast.probability,
            at: promise.forecast.at,
            interval: (promise.forecast.earliest, promise.forecast.latest),
            outcome: Some(SmolStr::new_static(promise.outcome)),
        });
        shown.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tapio_schemas::Score;

    fn at(second: u64) -> UnixNanos {
        UnixNanos(second * 1_000_000_000)
    }

    fn web() -> Entity {
        Entity::namespaced("Service", "shop", "web")
    }

    fn forecast(second: u64) -> Forecast {
        Forecast {
            scenario: "cascade_call".into(),
            probability: Score::clamped(0.5),
            at: at(second),
            earliest: at(second - 10),
            latest: at(second + 10),
        }
    }

    fn outcomes(foreseen: &Foreseen) -> Vec<String> {
        foreseen.predictions().iter().filter_map(|p| p.outcome.as_ref().map(ToString::to_string)).collect()
    }

    #[test]
    fn what_comes_is_scored_by_its_interval_and_what_does_not_is_missed() {
        for (stands, now, expected) in [
            (Stands::Open, 110, "pending"),
            (Stands::Open, 116, "miss"),
            (Stands::Came(at(80)), 110, "early"),
            (Stands::Came(at(105)), 120, "hit"),
            (Stands::Came(at(111)), 112, "miss"),
            (Stands::Gone, 95, "not_due"),
            (Stands::Gone, 116, "miss"),
        ] {
            let mut foreseen = Foreseen::default();
            foreseen.tell(&web(), forecast(100), String::new(), at(50), 0);
            foreseen.score(at(now), |_| stands);
            assert_eq!(outcomes(&foreseen), [expected], "{stands:?} at {now}");
        }
    }

    #[test]
    fn what_is_about_to_come_or_scored_is_not_changed_and_what_is_back_is() {
        let mut foreseen = Foreseen::default();
        let tell = |foreseen: &mut Foreseen, second, now| {
            foreseen.tell(&web(), forecast(second), String::new(), at(now), 0);
        };
        tell(&mut foreseen, 100, 50);
        tell(&mut foreseen, 120, 60);
        assert_eq!(foreseen.predictions()[0].at, at(120));
        tell(&mut foreseen, 200, 106);
        assert_eq!(foreseen.predictions()[0].at, at(120), "it may come any moment");
        foreseen.score(at(108), |_| Stands::Gone);
        tell(&mut foreseen, 300, 200);
        assert_eq!(
            (foreseen.predictions()[0].at, outcomes(&foreseen)),
            (at(300), vec!["pending".to_owned()])
        );
        foreseen.score(at(295), |_| Stands::Came(at(295)));
        tell(&mut foreseen, 400, 320);
        assert_eq!(outcomes(&foreseen), ["hit"]);
    }

    #[test]
    fn a_finding_foretells_only_so_much() {
        let mut foreseen = Foreseen::default();
        for number in 0..20 {
            let entity = Entity::namespaced("Service", "shop", &format!("web-{number}"));
            foreseen.tell(&entity, forecast(100), String::new(), at(50), 0);
        }
        assert_eq!(foreseen.predictions().len(), FORESEEN_MAX);
        assert!(foreseen.is_full());
    }

    #[test]
    fn what_is_scored_makes_room_and_stays_until_more_is_scored_than_a_finding_holds() {
        let mut foreseen = Foreseen::default();
        let name = |number: u64| Entity::namespaced("Service", "shop", &format!("web-{number}"));
        // The first of all stays open for long.
        let last = 5 * HELD_MAX as u64;
        foreseen.tell(&web(), forecast(last + 100), String::new(), at(1), 0);
        for number in 1..=last {
            foreseen.tell(&name(number), forecast(number + 20), String::new(), at(number), 0);
            assert!(foreseen.holds("cascade_call", &name(number)), "{number}");
            foreseen.score(at(number + 15), |promise| match promise.entity == web() {
                true => Stands::Open,
                false => Stands::Came(at(number + 15)),
            });
            let kept = (number as usize + 1).min(HELD_MAX);
            assert_eq!((outcomes(&foreseen).len(), foreseen.pending().count()), (kept, 1), "{number}");
        }
        // It is scored last, so it goes last.
        foreseen.score(at(last + 100), |_| Stands::Came(at(last + 100)));
        for number in 1..HELD_MAX as u64 {
            let (number, now) = (last + number, last + 200);
            foreseen.tell(&name(number), forecast(now + 20), String::new(), at(now), 0);
            foreseen.score(at(now + 15), |_| Stands::Came(at(now + 15)));
        }
        assert_eq!(foreseen.predictions().len(), HELD_MAX);
        assert!(foreseen.knows("cascade_call", &web()));
        assert!(!foreseen.knows("cascade_call", &name(last)));
        assert_eq!(outcomes(&foreseen), ["hit"; HELD_MAX]);
    }
}
