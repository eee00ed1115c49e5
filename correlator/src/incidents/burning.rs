//! Error budgets that burn: told with the finding that explains the errors, or by a finding of their own when nothing does.

use std::collections::{BTreeMap, BTreeSet};

use tapio_schemas::finding::{
    Action, ChainLink, FINDING_SCHEMA, Finding, Freshness, Hypothesis, Impact, RootCause, SCENARIO_BUDGET,
    SemanticGroup, Status,
};
use tapio_schemas::learning::{PriorHistory, prediction_key};
use tapio_schemas::signal::Forecast;
use tapio_schemas::{Entity, FindingId, Score, Severity, SignalId, SmolStr, UnixNanos};

use super::config::{IncidentConfig, nanos};
use super::foreseen::{Foreseen, Promise, Stands};
use super::graph::Graph;
use super::incident::{Incident, finding_id};
use super::says;
use super::signals::{Known, is_change};
use super::view::View;
use crate::model::{date_time, duration};
use crate::slo::{Budgets, Burn};

/// Cause of a finding that is about a budget alone.
const CAUSE: &str = "slo.budget_burn";
/// That requests fail too often is counted; which of several services fails them is not in question.
const CONFIDENCE: f64 = 0.9;
/// To open one again at the same tick a restart reads from so long before it.
const BEFORE_NS: u64 = 10_000_000_000;
/// A burn for which there is no finding waits so long for one: what breaks is told of as such long before. What is left is what
/// always fails.
const HOLD_NS: u64 = 1_800_000_000_000;
/// A burn that nothing else tells of is told when it is so many times as fast as it may be: half of the slower alert.
const SPEED_MIN: f64 = 3.0;
/// Findings about budgets alone at a time; of further ones nothing is told.
const OPEN_MAX: usize = 256;

/// Budgets that burn, by home.
pub type Burns<'a> = BTreeMap<Entity, &'a Burn>;

/// What a service's budget is told of.
pub fn is_budget(promise: &Promise) -> bool {
    promise.forecast.scenario == SCENARIO_BUDGET
}

/// Foretells when a budget will be used up, unless it is or will not be.
pub fn foretell(
    home: &Entity,
    burn: &Burn,
    priors: &PriorHistory,
    now: UnixNanos,
    refresh_ns: u64,
    foreseen: &mut Foreseen,
) {
    let Some(forecast) = burn.forecast.clone() else { return };
    let odds = |p: f64| p / (1.0 - p).max(1e-3);
    let odds = odds(forecast.probability.get()) * priors.factor(&prediction_key(SCENARIO_BUDGET), now);
    let probability = Score::clamped((100.0 * odds / (1.0 + odds)).round() / 100.0);
    let forecast = Forecast { probability, ..forecast };
    foreseen.tell(home, forecast, in_words(home, burn), now, refresh_ns);
}

/// How it stands with a budget that was foretold.
pub fn stands(burns: &Burns<'_>, promise: &Promise) -> Stands {
    match burns.get(&promise.entity) {
        Some(Burn { used_up_at: Some(at), .. }) => Stands::Came(*at),
        // While it burns too fast only the time may be too uncertain to be told.
        Some(_) => Stands::Open,
        None => Stands::Gone,
    }
}

/// The story's sentences on budgets.
pub fn sentences(foreseen: &Foreseen) -> impl Iterator<Item = String> {
    foreseen.pending().filter(|promise| is_budget(promise)).map(|promise| {
        let Forecast { at, earliest, latest, probability, .. } = &promise.forecast;
        let (at, from, to) = (date_time(*at), date_time(*earliest), date_time(*latest));
        format!(
            "{} If the errors go on, nothing is left of it at {at} (between {from} and {to}, probability {:.2}).",
            promise.says,
            probability.get()
        )
    })
}

fn in_words(home: &Entity, burn: &Burn) -> String {
    let (objective, window) = objective(burn);
    format!(
        "The error budget of {} ({objective} in {window}) burns {:.0} times as fast as it may: {}.",
        says::name(home),
        burn.speed,
        used(burn)
    )
}

fn objective(burn: &Burn) -> (String, String) {
    let percent = format!("{:.4}", burn.terms.objective * 100.0);
    let percent = percent.trim_end_matches('0').trim_end_matches('.');
    let seconds = burn.terms.window_ns as f64 / 1e9;
    let days = seconds / 86_400.0;
    let window = if days >= 2.0 { format!("{days:.0} days") } else { duration(seconds) };
    (format!("{percent} %"), window)
}

fn used(burn: &Burn) -> String {
    let Burn { used, total, seen_from, .. } = burn;
    format!(
        "{:.1} % of it are gone since {}, with {} of {} requests, and what was before is not known",
        (used * 100.0).min(999.0),
        date_time(*seen_from),
        total.failures,
        total.requests
    )
}

/// Findings about budgets that no other finding explains.
#[derive(Debug, Default)]
pub struct Burning {
    cluster: SmolStr,
    open: BTreeMap<Entity, Incident>,
    refused: u64,
}

/// What there is beside a budget.
pub struct Beside<'a> {
    /// Burns by home.
    pub burns: &'a Burns<'a>,
    /// The finding that tells of what a service needs, or of who needs it.
    pub told_with: &'a dyn Fn(&Entity) -> Option<(FindingId, String)>,
    /// Last revision of a finding that was closed.
    pub last_revision: &'a dyn Fn(FindingId) -> u32,
    /// What outcomes say.
    pub priors: &'a PriorHistory,
    /// Settings.
    pub config: &'a IncidentConfig,
    /// Event time of the tick.
    pub now: UnixNanos,
}

impl Burning {
    /// Nothing burns.
    pub fn new(cluster: &str) -> Self {
        Self { cluster: cluster.into(), ..Self::default() }
    }

    /// Burns of which nothing was told at a tick, because too many are followed.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// True while there is something to be told of.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Time from which on signals are needed to open again what is open.
    pub fn needs_from(&self) -> Option<UnixNanos> {
        self.open.values().map(|incident| incident.opened_at.minus(BEFORE_NS)).min()
    }

    /// True while a finding with this id is followed.
    pub fn stands_for(&self, id: FindingId) -> bool {
        self.open.values().any(|incident| incident.id == id && incident.is_published())
    }

    /// The revisions of one tick. Those that are not followed any more are added to `closed`.
    pub fn decide(&mut self, beside: &Beside<'_>, closed: &mut Vec<(FindingId, u32)>) -> Vec<Finding> {
        self.open_new(beside);
        let mut findings = Vec::new();
        let now = beside.now;
        self.open.retain(|home, incident| {
            let burn = beside.burns.get(home).copied();
            if let Some((other, title)) = (beside.told_with)(home).filter(|_| burn.is_some()) {
                findings.extend(incident.merged_into(other, &title, now));
                closed.extend(incident.is_published().then(|| (incident.id, incident.revision())));
                return false;
            }
            incident.over_since = burn.is_none().then(|| incident.over_since.unwrap_or(now));
            let is_over = |since: UnixNanos| now.since(since) >= nanos(beside.config.reopen);
            if incident.over_since.is_some_and(|since| !incident.is_published() || is_over(since)) {
                closed.extend(incident.is_published().then(|| (incident.id, incident.revision())));
                return false;
            }
            let is_fast = burn.is_some_and(|burn| burn.speed >= SPEED_MIN);
            let is_due = now.since(incident.opened_at) >= HOLD_NS && (is_fast || incident.is_published());
            if is_due && !incident.rests() {
                let draft = draft(&self.cluster, home, burn, incident, beside);
                findings.extend(incident.publish(draft, now, nanos(beside.config.refresh)));
            }
            true
        });
        findings
    }

    fn open_new(&mut self, beside: &Beside<'_>) {
        for (home, burn) in beside.burns {
            let is_told = || (beside.told_with)(home).is_some();
            if self.open.contains_key(home) || is_told() {
                continue;
            }
            if self.open.len() >= OPEN_MAX {
                self.refused += 1;
                continue;
            }
            let text = format!("{CAUSE} {home} {}", burn.onset.0);
            let first = SignalId(xxhash_rust::xxh3::xxh3_128(text.as_bytes()));
            let revision = (beside.last_revision)(finding_id(&self.cluster, first));
            let mut incident = Incident::open(&self.cluster, first, beside.now, revision);
            (incident.onset, incident.members) = (burn.onset, BTreeSet::from([first]));
            self.open.insert(home.clone(), incident);
        }
    }
}

fn draft(
    cluster: &SmolStr,
    home: &Entity,
    burn: Option<&Burn>,
    incident: &mut Incident,
    beside: &Beside<'_>,
) -> Finding {
    let now = beside.now;
    let foreseen = &mut incident.foreseen;
    foreseen.score(now, |promise| stands(beside.burns, promise));
    if let Some(burn) = burn {
        foretell(home, burn, beside.priors, now, nanos(beside.config.refresh), foreseen);
    }
    let predictions = incident.foreseen.predictions();
    let last = incident.last();
    let says = burn.map(|burn| in_words(home, burn));
    let says = says.or(last.and_then(|last| last.chain.first()).map(|link| link.says.clone()));
    let story = match burn {
        Some(burn) => story(home, burn, &incident.foreseen),
        None => format!("{} It is over.", last.map_or("", |last| last.story.as_str())),
    };
    let cause = SmolStr::new_static(CAUSE);
    let confidence = Score::clamped(CONFIDENCE);
    let used_up = burn.is_some_and(|burn| burn.used_up_at.is_some());
    let query = [home.namespace.as_str(), home.kind.as_str(), home.name.as_str()];
    let query: Vec<String> = query.iter().filter(|part| !part.is_empty()).map(|p| p.to_lowercase()).collect();
    Finding {
        schema: SmolStr::new_static(FINDING_SCHEMA),
        id: incident.id,
        revision: 0,
        status: if burn.is_some() { Status::Active } else { Status::Recovered },
        superseded_by: None,
        cluster: cluster.clone(),
        severity: if used_up { Severity::Error } else { Severity::Warning },
        title: format!("Requests to {} fail more often than its objective allows", says::name(home)),
        story,
        opened_at: incident.told_opened_at(),
        first_bad_at: incident.onset,
        updated_at: if burn.is_some() { now } else { last.map_or(now, |last| last.updated_at) },
        emitted_at: now,
        confidence,
        root_cause: Some(RootCause { entity: home.clone(), cause: cause.clone(), evidence: Vec::new() }),
        hypotheses: vec![Hypothesis {
            entity: home.clone(),
            cause,
            probability: confidence,
            explains: Vec::new(),
            missing: Vec::new(),
            refuted_by: Vec::new(),
        }],
        chain: vec![ChainLink {
            at: incident.onset,
            entity: home.clone(),
            signal: SmolStr::new_static(CAUSE),
            says: says.unwrap_or_default(),
            evidence: Vec::new(),
        }],
        said: Vec::new(),
        impact: Impact { slo_impact: true, ..Impact::default() },
        prediction: None,
        predictions,
        actions: vec![Action {
            title: format!("See which requests of {} fail, and since which change", says::name(home)),
            risk: SmolStr::new_static("low"),
            command: format!("tapio why {}", query.join("/")),
            undo: String::new(),
        }],
        semantic_group: SemanticGroup {
            group_type: SmolStr::new_static("service_failure"),
            intent: SmolStr::new_static("request-failure"),
            ..SemanticGroup::default()
        },
        freshness: Freshness { watermark: now, gaps: Vec::new() },
    }
}

fn story(home: &Entity, burn: &Burn, foreseen: &Foreseen) -> String {
    let mut story = match burn.used_up_at {
        Some(at) => {
            let (objective, window) = objective(burn);
            let name = says::name(home);
            format!(
                "The error budget of {name} ({objective} in {window}) is used up since {}: {}.",
                date_time(at),
                used(burn)
            )
        }
        None => String::new(),
    };
    let told: Vec<String> = sentences(foreseen).collect();
    if told.is_empty() && burn.used_up_at.is_none() {
        story = in_words(home, burn);
    }
    let since = date_time(burn.onset);
    let why = format!("So many requests fail since {since}; nothing that is known explains it.");
    let parts = [story].into_iter().chain(told).chain([why]).filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join(" ")
}

/// Homes in an incident that fail requests.
pub fn failing<'a>(view: &'a View<'_>, members: &'a [usize]) -> impl Iterator<Item = &'a Entity> {
    use tapio_schemas::SignalKind as K;
    let fails = |at: &&usize| {
        matches!(view.signals[**at].kind, K::SpanErrors | K::SpanTimeouts | K::HttpServerErrors)
    };
    members.iter().filter(fails).map(|at| &view.homes[*at])
}

/// Budgets that burn, by what answers for the service; of several names of one thing the budget that is emptier.
pub fn by_home<'a>(budgets: &'a Budgets, graph: &Graph) -> Burns<'a> {
    let mut burns = Burns::new();
    for (service, burn) in budgets.burns() {
        let known = burns.entry(graph.home(service)).or_insert(burn);
        if burn.used > known.used {
            *known = burn;
        }
    }
    burns
}

/// The homes of what incidents hold, each with the oldest of them.
pub fn homes_of<'i>(
    incidents: &[&'i Incident],
    known: &Known,
    graph: &Graph,
) -> BTreeMap<Entity, &'i Incident> {
    let mut homes: BTreeMap<Entity, &Incident> = BTreeMap::new();
    for incident in incidents {
        for signal in incident.members.iter().filter_map(|id| known.get(*id)).filter(|s| !is_change(s.kind)) {
            let oldest = homes.entry(graph.home(&signal.entity.owner())).or_insert(incident);
            if (incident.opened_at, incident.id) < (oldest.opened_at, oldest.id) {
                *oldest = incident;
            }
        }
    }
    homes
}

#[cfg(test)]
#[path = "burning_tests.rs"]
mod tests;
