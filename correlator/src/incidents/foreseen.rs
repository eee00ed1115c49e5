//! What a finding foretells elsewhere than where its cause is, and whether it came: callers that will suffer, error budgets
//! that will be used up.

use tapio_schemas::finding::Prediction;
use tapio_schemas::signal::Forecast;
use tapio_schemas::{Entity, SmolStr, UnixNanos};

use super::prediction::{PASSED_SLACK_NS, is_due, outcome};

/// Predictions that a finding holds; further things are not foretold.
pub const FORESEEN_MAX: usize = 8;

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

    /// True when this was ever foretold.
    pub fn knows(&self, scenario: &str, entity: &Entity) -> bool {
        self.0.iter().any(|promise| promise.is_of(scenario, entity))
    }

    /// True when this is foretold and not scored yet.
    pub fn holds(&self, scenario: &str, entity: &Entity) -> bool {
        self.pending().any(|promise| promise.is_of(scenario, entity))
    }

    /// True when nothing more finds room.
    pub fn is_full(&self) -> bool {
        self.0.len() >= FORESEEN_MAX
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
        let promise = Promise { entity: entity.clone(), forecast, says, at: now, outcome: "pending" };
        let known = self.0.iter().position(|known| known.is_of(&promise.forecast.scenario, entity));
        let Some(known) = known else {
            if !self.is_full() {
                self.0.push(promise);
            }
            return;
        };
        let known = &mut self.0[known];
        let is_again = known.outcome == "not_due";
        let moves = || is_due(&known.forecast, &promise.forecast, known.at, now, refresh_ns);
        if is_again || (known.is_pending() && moves()) {
            *known = promise;
        }
    }

    /// Scores what can be. `stands` says how it stands with each that is pending.
    pub fn score(&mut self, now: UnixNanos, stands: impl Fn(&Promise) -> Stands) {
        for promise in self.0.iter_mut().filter(|promise| promise.is_pending()) {
            match stands(promise) {
                Stands::Came(at) => promise.outcome = outcome(&promise.forecast, at),
                _ if now > promise.forecast.latest.plus(PASSED_SLACK_NS) => promise.outcome = "miss",
                Stands::Gone => promise.outcome = "not_due",
                Stands::Open => {}
            }
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
}
