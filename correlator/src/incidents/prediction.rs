//! What comes next, and whether it came.

use smol_str::SmolStr;
use tapio_schemas::finding::Prediction;
use tapio_schemas::signal::Forecast;
use tapio_schemas::{Entity, Signal, SignalKind, UnixNanos};

use super::view::View;

/// A forecast that moves by less than this share of its interval is the same forecast.
const MOVED_SHARE: f64 = 0.2;
/// Slack after the latest time before a forecast counts as wrong: the kill must be able to arrive.
pub(super) const PASSED_SLACK_NS: u64 = 5_000_000_000;

/// From this long before its earliest time a forecast is no longer changed: what is said in the last seconds is no
/// forecast, and it is this one that is scored.
const FROZEN_BEFORE_NS: u64 = 5_000_000_000;

/// What foretells what, and how it ends.
struct Scenario {
    /// Carries the forecast.
    sign: SignalKind,
    /// Any of them says that it has come.
    came: &'static [SignalKind],
    /// Slack after the latest time, ns: what says that it has come must be able to arrive.
    slack_ns: u64,
}

const SCENARIOS: [Scenario; 3] = [
    Scenario {
        sign: SignalKind::MemoryGrowth,
        came: &[SignalKind::OomKill, SignalKind::ContainerOomKilled],
        slack_ns: PASSED_SLACK_NS,
    },
    // Seen by the next sample; the time between two samples is part of the interval.
    Scenario { sign: SignalKind::DiskGrowth, came: &[SignalKind::DiskFull], slack_ns: PASSED_SLACK_NS },
    // The time is exact, and exporters look seldom.
    Scenario {
        sign: SignalKind::CertificateExpiring,
        came: &[SignalKind::CertificateExpired],
        slack_ns: 600_000_000_000,
    },
];

fn scenario_of(sign: SignalKind) -> Option<&'static Scenario> {
    SCENARIOS.iter().find(|scenario| scenario.sign == sign)
}

/// Which of several on one entity: the file system, the certificate.
fn place_of(signal: &Signal) -> &str {
    signal.attribute("place").and_then(|place| place.as_text()).unwrap_or("")
}

/// What an incident has foretold, and how it ended.
#[derive(Debug, Clone, Default)]
pub struct Foretold {
    shown: Option<Shown>,
    /// When it was foretold first.
    first: UnixNanos,
}

#[derive(Debug, Clone)]
struct Shown {
    forecast: Forecast,
    /// When it was last set: a kill before that was not foretold by it.
    at: UnixNanos,
    outcome: &'static str,
    sign: SignalKind,
    place: SmolStr,
}

impl Shown {
    fn is_of(&self, signal: &Signal) -> bool {
        self.sign == signal.kind && self.place == place_of(signal)
    }

    fn slack_ns(&self) -> u64 {
        scenario_of(self.sign).map_or(PASSED_SLACK_NS, |scenario| scenario.slack_ns)
    }
}

impl Foretold {
    /// Looks at the signals on `seat`: takes a new forecast, scores the one that was shown.
    ///
    /// Of several things foretold of one seat the one shown stays until it is scored; else the earliest is taken.
    pub fn look(&mut self, view: &View<'_>, members: &[usize], seat: &Entity, refresh_ns: u64) {
        let on_seat = || members.iter().filter(|at| view.homes[**at] == *seat).map(|at| view.signals[*at]);
        let came = |sign: SignalKind, place: &str| {
            let kinds = scenario_of(sign).map_or(&[][..], |scenario| scenario.came);
            let matching = on_seat().filter(|s| kinds.contains(&s.kind) && place_of(s) == place);
            matching.map(|s| s.onset).max()
        };
        let event = self.shown.as_ref().and_then(|shown| came(shown.sign, &shown.place));
        if self.score(event, view.now) {
            return;
        }
        let pending = self.shown.as_ref().filter(|shown| shown.outcome == "pending");
        let sign = on_seat()
            .filter(|s| !s.ended && s.forecast.is_some() && scenario_of(s.kind).is_some())
            .filter(|s| came(s.kind, place_of(s)).is_none_or(|event| s.onset > event))
            .min_by_key(|s| {
                let is_shown = pending.is_some_and(|shown| shown.is_of(s));
                // Of what is foretold alike (replicas), what was seen last.
                let due = if is_shown { None } else { s.forecast.as_ref().map(|f| f.at) };
                (due, std::cmp::Reverse((s.last_seen, s.id)))
            });
        match sign.and_then(|s| Some((s, s.forecast.clone()?))) {
            Some((signal, forecast)) => self.take(signal, forecast, view.now, refresh_ns),
            // The growth stopped before its time: nothing was proven either way.
            None => {
                if let Some(shown) = self.shown.as_mut().filter(|shown| shown.outcome == "pending") {
                    shown.outcome = "not_due";
                }
            }
        }
    }

    /// True when the forecast was scored just now.
    fn score(&mut self, came: Option<UnixNanos>, now: UnixNanos) -> bool {
        let Some(shown) = self.shown.as_mut().filter(|s| s.outcome == "pending") else { return false };
        if let Some(came) = came.filter(|came| *came >= shown.at.minus(PASSED_SLACK_NS)) {
            shown.outcome = outcome(&shown.forecast, came);
        } else if now > shown.forecast.latest.plus(shown.slack_ns()) {
            shown.outcome = "miss";
        }
        shown.outcome != "pending"
    }

    fn take(&mut self, signal: &Signal, forecast: Forecast, now: UnixNanos, refresh_ns: u64) {
        match self.shown.as_ref().filter(|shown| shown.outcome == "pending" && shown.is_of(signal)) {
            Some(shown) => {
                if !is_due(&shown.forecast, &forecast, shown.at, now, refresh_ns) {
                    return;
                }
            }
            None => self.first = now,
        }
        let place = SmolStr::new(place_of(signal));
        self.shown = Some(Shown { forecast, at: now, outcome: "pending", sign: signal.kind, place });
    }

    /// When it was foretold first, if it is.
    pub fn first_told(&self) -> Option<UnixNanos> {
        self.shown.as_ref().map(|_| self.first)
    }

    /// As a finding shows it.
    pub fn prediction(&self) -> Option<Prediction> {
        self.shown.as_ref().map(|shown| Prediction {
            entity: None,
            scenario: shown.forecast.scenario.clone(),
            probability: shown.forecast.probability,
            at: shown.forecast.at,
            interval: (shown.forecast.earliest, shown.forecast.latest),
            outcome: Some(SmolStr::new_static(shown.outcome)),
        })
    }
}

/// How a forecast ended with what came.
pub(super) fn outcome(forecast: &Forecast, came: UnixNanos) -> &'static str {
    match came {
        came if came < forecast.earliest => "early",
        came if came <= forecast.latest => "hit",
        _ => "miss",
    }
}

/// True when a forecast told at `at` is to be changed into another one: it can still be, and has moved or aged.
pub(super) fn is_due(
    told: &Forecast,
    new: &Forecast,
    at: UnixNanos,
    now: UnixNanos,
    refresh_ns: u64,
) -> bool {
    let frozen = now.plus(FROZEN_BEFORE_NS) >= told.earliest;
    !frozen && (now.since(at) >= refresh_ns || moved(told, new))
}

/// True when the best estimate or a bound has moved by more than a share of the interval.
fn moved(before: &Forecast, after: &Forecast) -> bool {
    let width = before.latest.since(before.earliest) as f64;
    let apart = |a: UnixNanos, b: UnixNanos| a.0.abs_diff(b.0) as f64 > MOVED_SHARE * width;
    apart(before.at, after.at) || apart(before.latest, after.latest) || apart(before.earliest, after.earliest)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use tapio_schemas::Score;

    fn forecast(at: u64) -> Forecast {
        let second = |s: u64| UnixNanos(s * 1_000_000_000);
        Forecast {
            scenario: "oom_kill".into(),
            probability: Score::ONE,
            at: second(at),
            earliest: second(at - 4),
            latest: second(at + 4),
        }
    }

    fn foretold(steps: &[(u64, u64)]) -> Foretold {
        let mut foretold = Foretold::default();
        for (now, at) in steps {
            let sign = Signal::new(SignalKind::MemoryGrowth, Arc::default(), None, UnixNanos(1));
            foretold.take(&sign, forecast(*at), UnixNanos(now * 1_000_000_000), 10_000_000_000);
        }
        foretold
    }

    #[test]
    fn what_is_said_in_the_last_seconds_is_not_what_is_scored() {
        let mut told = foretold(&[(100, 160), (158, 170)]);
        assert_eq!(told.prediction().unwrap().at, forecast(160).at);
        assert!(told.score(Some(UnixNanos(170_000_000_000)), UnixNanos(170_500_000_000)));
        assert_eq!(told.prediction().unwrap().outcome.as_deref(), Some("miss"));
        assert_eq!(told.first_told(), Some(UnixNanos(100_000_000_000)));
    }

    #[test]
    fn what_comes_before_its_time_is_early_and_within_the_interval_a_hit() {
        for (kill, outcome) in [(120, "early"), (156, "hit"), (164, "hit"), (165, "miss")] {
            let mut told = foretold(&[(100, 160)]);
            let kill = UnixNanos(kill * 1_000_000_000);
            assert!(told.score(Some(kill), kill));
            assert_eq!(told.prediction().unwrap().outcome.as_deref(), Some(outcome), "{kill}");
        }
    }

    #[test]
    fn a_forecast_moves_when_it_must_and_not_otherwise() {
        assert_eq!(foretold(&[(100, 160), (101, 161)]).prediction().unwrap().at, forecast(160).at);
        assert_eq!(foretold(&[(100, 160), (101, 165)]).prediction().unwrap().at, forecast(165).at);
        assert_eq!(foretold(&[(100, 160), (111, 161)]).prediction().unwrap().at, forecast(161).at);
    }

    #[test]
    fn a_time_that_passes_without_a_kill_is_a_miss() {
        let mut told = foretold(&[(100, 160)]);
        assert!(!told.score(None, UnixNanos(168_000_000_000)));
        assert!(told.score(None, UnixNanos(170_000_000_000)));
        assert_eq!(told.prediction().unwrap().outcome.as_deref(), Some("miss"));
    }
}
