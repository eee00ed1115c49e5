//! What comes next, and whether it came.

use smol_str::SmolStr;
use tapio_schemas::finding::Prediction;
use tapio_schemas::signal::Forecast;
use tapio_schemas::{Entity, SignalKind, UnixNanos};

use super::candidates::View;

/// A forecast that moves by less than this share of its interval is the same forecast.
const MOVED_SHARE: f64 = 0.2;
/// Slack after the latest time before a forecast counts as wrong: the kill must be able to arrive.
const PASSED_SLACK_NS: u64 = 5_000_000_000;

/// What an incident has foretold, and how it ended.
#[derive(Debug, Clone, Default)]
pub struct Foretold {
    shown: Option<Shown>,
}

#[derive(Debug, Clone)]
struct Shown {
    forecast: Forecast,
    /// When it was last set: a kill before that was not foretold by it.
    at: UnixNanos,
    outcome: &'static str,
}

impl Foretold {
    /// Looks at the signals on `seat`: takes a new forecast, scores the one that was shown.
    pub fn look(&mut self, view: &View<'_>, members: &[usize], seat: &Entity, refresh_ns: u64) {
        let on_seat = |kind: SignalKind| {
            members.iter().filter(move |at| view.homes[**at] == *seat && view.signals[**at].kind == kind)
        };
        let kill = on_seat(SignalKind::OomKill)
            .chain(on_seat(SignalKind::ContainerOomKilled))
            .map(|at| view.signals[*at].onset)
            .max();
        self.score(kill, view.now);
        let growth = on_seat(SignalKind::MemoryGrowth)
            .map(|at| view.signals[*at])
            .filter(|s| !s.ended && s.forecast.is_some() && kill.is_none_or(|kill| s.onset > kill))
            .max_by_key(|s| (s.last_seen, s.id));
        match growth.and_then(|s| s.forecast.clone()) {
            Some(forecast) => self.take(forecast, view.now, refresh_ns),
            // The growth stopped before its time: nothing was proven either way.
            None if self.shown.as_ref().is_some_and(|s| s.outcome == "pending") => self.shown = None,
            None => {}
        }
    }

    fn score(&mut self, kill: Option<UnixNanos>, now: UnixNanos) {
        let Some(shown) = self.shown.as_mut().filter(|s| s.outcome == "pending") else { return };
        if let Some(kill) = kill.filter(|kill| *kill >= shown.at.minus(PASSED_SLACK_NS)) {
            let inside = kill >= shown.forecast.earliest && kill <= shown.forecast.latest;
            shown.outcome = if inside { "hit" } else { "miss" };
        } else if now > shown.forecast.latest.plus(PASSED_SLACK_NS) {
            shown.outcome = "miss";
        }
    }

    fn take(&mut self, forecast: Forecast, now: UnixNanos, refresh_ns: u64) {
        let keep = self.shown.as_ref().is_some_and(|shown| {
            shown.outcome == "pending"
                && now.since(shown.at) < refresh_ns
                && !moved(&shown.forecast, &forecast)
        });
        if !keep {
            self.shown = Some(Shown { forecast, at: now, outcome: "pending" });
        }
    }

    /// As a finding shows it.
    pub fn prediction(&self) -> Option<Prediction> {
        self.shown.as_ref().map(|shown| Prediction {
            scenario: shown.forecast.scenario.clone(),
            probability: shown.forecast.probability,
            at: shown.forecast.at,
            interval: (shown.forecast.earliest, shown.forecast.latest),
            outcome: Some(SmolStr::new_static(shown.outcome)),
        })
    }
}

/// True when the best estimate or a bound has moved by more than a share of the interval.
fn moved(before: &Forecast, after: &Forecast) -> bool {
    let width = before.latest.since(before.earliest) as f64;
    let apart = |a: UnixNanos, b: UnixNanos| a.0.abs_diff(b.0) as f64 > MOVED_SHARE * width;
    apart(before.at, after.at) || apart(before.latest, after.latest) || apart(before.earliest, after.earliest)
}
