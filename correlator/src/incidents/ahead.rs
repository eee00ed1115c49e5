//! What a finding tells of the future elsewhere than where its cause is.

use std::cell::OnceCell;
use std::collections::BTreeSet;

use tapio_schemas::finding::{PERSIST_CONFIDENCE_ABOVE, SCENARIO_BUDGET};
use tapio_schemas::learning::{PriorHistory, prediction_key};
use tapio_schemas::{Entity, Finding, FindingId, UnixNanos};

use super::burning::{self, Beside, Burns, by_home, is_budget};
use super::cascade::{self, CALLERS_MAX, Scene, Shares};
use super::foreseen::{FORESEEN_MAX, Foreseen, Stands};
use super::graph::Graph;
use super::impact::Tallies;
use super::incident::Incident;
use super::view::View;
use super::{IncidentEngine, last_revision};
use crate::slo::Burn;

/// Budgets foretold by a finding at a time, so that callers find room beside them.
const BUDGETS_MAX: usize = FORESEEN_MAX - CALLERS_MAX;

/// What the future is told from.
pub struct Ahead<'a> {
    /// Budgets that burn.
    pub burns: Burns<'a>,
    /// What outcomes say of earlier predictions.
    pub priors: &'a PriorHistory,
    /// Calls between homes, once they are asked for.
    pub shares: OnceCell<Shares<'a>>,
}

/// An incident as it stands.
pub struct Now<'a> {
    /// The signals of the tick.
    pub view: &'a View<'a>,
    /// Those of the incident.
    pub members: &'a [usize],
    /// Where its cause is.
    pub seat: &'a Entity,
    /// First sign of it.
    pub first_bad: UnixNanos,
    /// Stated confidence, when a cause is named.
    pub confidence: Option<f64>,
    /// It goes on.
    pub goes_on: bool,
    /// A forecast is told again after so long.
    pub refresh_ns: u64,
}

impl<'a> Ahead<'a> {
    /// Scores what was foretold, and foretells what is to come: of callers only when the cause is told with confidence.
    /// True when the incident touches an objective.
    pub fn look(&self, now: &Now<'_>, tallies: &'a Tallies, graph: &Graph, foreseen: &mut Foreseen) -> bool {
        let burns = self.of_incident(now);
        let touches = !burns.is_empty();
        let view = now.view;
        foreseen.score(view.now, |promise| match is_budget(promise) {
            true if !now.goes_on => Stands::Gone,
            true => burning::stands(&self.burns, promise),
            false => cascade::stands(view, promise, now.goes_on),
        });
        if !now.goes_on {
            return touches;
        }
        // How often requests fail is counted, whatever the cause is.
        for (home, burn) in burns {
            let has_room = foreseen.pending().filter(|promise| is_budget(promise)).count() < BUDGETS_MAX;
            if !has_room && !foreseen.holds(SCENARIO_BUDGET, home) {
                continue;
            }
            burning::foretell(home, burn, self.priors, view.now, now.refresh_ns, foreseen);
        }
        if now.confidence.is_none_or(|stated| stated <= PERSIST_CONFIDENCE_ABOVE)
            || cascade::room(foreseen) == 0
        {
            return touches;
        }
        let shares = self.shares.get_or_init(|| Shares::new(tallies, graph));
        let factor = |scenario: &str| self.priors.factor(&prediction_key(scenario), view.now);
        let (members, first_bad) = (now.members, now.first_bad);
        let scene = Scene { view, members, first_bad, shares, factor: &factor };
        scene.foretell(foreseen, now.refresh_ns);
        touches
    }

    /// Burns that the incident explains: that of its seat, then those that are used up first.
    fn of_incident(&self, now: &Now<'_>) -> Vec<(&Entity, &'a Burn)> {
        if self.burns.is_empty() {
            return Vec::new();
        }
        let concerned: BTreeSet<&Entity> = burning::failing(now.view, now.members).collect();
        let is_of = |home: &Entity| home == now.seat || concerned.contains(home);
        let burns = self.burns.iter().filter(|(home, _)| is_of(home));
        let mut burns: Vec<(&Entity, &Burn)> = burns.map(|(home, burn)| (home, *burn)).collect();
        let used_up = |burn: &Burn| burn.forecast.as_ref().map(|forecast| forecast.at);
        burns.sort_by_key(|(home, burn)| (*home != now.seat, used_up(burn).is_none(), used_up(burn)));
        burns
    }
}

impl IncidentEngine {
    /// Budgets that burn and that no finding tells of.
    pub(super) fn decide_budgets(&mut self) -> Vec<Finding> {
        if !self.budgets.own_findings() {
            return Vec::new();
        }
        let burns = by_home(&self.budgets, &self.graph);
        if burns.is_empty() && self.burning.is_empty() {
            return Vec::new();
        }
        let told: Vec<&Incident> =
            self.incidents.iter().filter(|i| i.is_published() && i.over_since.is_none()).collect();
        let homes = burning::homes_of(&told, &self.known, &self.graph);
        let told_with = |home: &Entity| {
            let needed = [self.graph.reach(home, false), self.graph.reach(home, true)];
            let near = needed.iter().flat_map(|homes| homes.iter()).chain([home]);
            let incident = near.filter_map(|near| homes.get(near)).min_by_key(|i| (i.opened_at, i.id))?;
            Some((incident.id, incident.title()))
        };
        let last_revision = |id: FindingId| last_revision(&self.closed, id);
        let beside = Beside {
            burns: &burns,
            told_with: &told_with,
            last_revision: &last_revision,
            priors: &self.priors,
            config: &self.config,
            now: self.tick,
        };
        let mut closed = Vec::new();
        let findings = self.burning.decide(&beside, &mut closed);
        self.closed.extend(closed);
        findings
    }
}

/// What the story says of it.
pub fn sentences(foreseen: &Foreseen) -> Vec<String> {
    cascade::sentence(foreseen).into_iter().chain(burning::sentences(foreseen)).collect()
}

#[cfg(test)]
mod tests {
    use tapio_schemas::signal::Forecast;
    use tapio_schemas::{Score, Signal, SignalKind};

    use super::*;
    use crate::incidents::tests::{SECOND, at_second as at, service};
    use crate::slo::Terms;

    /// A budget that will be used up an hour from now, or was just then.
    fn burn(used_up_at: Option<UnixNanos>) -> Burn {
        let (earliest, latest) = (at(3_000), at(4_200));
        let forecast = Forecast {
            scenario: SCENARIO_BUDGET.into(),
            probability: Score::clamped(0.8),
            at: at(3_600),
            earliest,
            latest,
        };
        Burn {
            terms: Terms { objective: 0.99, window_ns: 86_400 * SECOND },
            onset: at(1),
            seen_from: at(0),
            total: Default::default(),
            used: 0.5,
            speed: 10.0,
            forecast: Some(forecast).filter(|_| used_up_at.is_none()),
            used_up_at,
        }
    }

    #[test]
    fn budgets_that_are_used_up_leave_their_room_to_others() {
        let names: Vec<String> = (0..BUDGETS_MAX + 2).map(|n| format!("s{n}")).collect();
        let errors: Vec<Signal> = names
            .iter()
            .map(|name| Signal::new(SignalKind::HttpServerErrors, service(name), None, at(1)))
            .collect();
        let (graph, kernel, tallies) = (Graph::new(16), BTreeSet::new(), Tallies::new(16));
        let (priors, mut foreseen) = (PriorHistory::default(), Foreseen::default());
        let members: Vec<usize> = (0..errors.len()).collect();
        let home = |name: &String| service(name).owner();
        let mut look = |second: u64, used_up: usize| {
            let burns: Vec<Burn> = (0..names.len()).map(|n| burn((n < used_up).then(|| at(3_500)))).collect();
            let burns: Burns<'_> = names.iter().map(home).zip(&burns).collect();
            let ahead = Ahead { burns, priors: &priors, shares: OnceCell::new() };
            let view = View::new(errors.iter().collect(), &graph, &kernel, at(second));
            let seat = home(&names[0]);
            let now = Now {
                view: &view,
                members: &members,
                seat: &seat,
                first_bad: at(1),
                confidence: None,
                goes_on: true,
                refresh_ns: 60 * SECOND,
            };
            assert!(ahead.look(&now, &tallies, &graph, &mut foreseen));
            foreseen.predictions().iter().map(|p| p.outcome.clone().unwrap_or_default()).collect::<Vec<_>>()
        };
        assert_eq!(look(10, 0), ["pending"; BUDGETS_MAX]);
        let later = look(3_510, BUDGETS_MAX);
        assert_eq!(later, [["hit"; BUDGETS_MAX].as_slice(), &["pending"; 2]].concat());
    }
}
