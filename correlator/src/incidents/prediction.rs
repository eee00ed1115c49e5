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

/// From this long before its earliest time a forecast is no longer changed: what is said in the last seconds is no
/// forecast, and it is this one that is scored.
const FROZEN_BEFORE_NS: u64 = 5_000_000_000;

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
        if self.score(kill, view.now) {
            return;
        }
        let growth = on_seat(SignalKind::MemoryGrowth)
            .map(|at| view.signals[*at])
            .filter(|s| !s.ended && s.forecast.is_some() && kill.is_none_or(|kill| s.onset > kill))
            .max_by_key(|s| (s.last_seen, s.id));
        match growth.and_then(|s| s.forecast.clone()) {
            Some(forecast) => self.take(forecast, view.now, refresh_ns),
            // The growth stopped before its time: nothing was proven either way.
            None => {
                if let Some(shown) = self.shown.as_mut().filter(|shown| shown.outcome == "pending") {
                    shown.outcome = "not_due";
                }
            }
        }
    }

    /// True when the forecast was scored just now.
    fn score(&mut self, kill: Option<UnixNanos>, now: UnixNanos) -> bool {
        let Some(shown) = self.shown.as_mut().filter(|s| s.outcome == "pending") else { return false };
        if let Some(kill) = kill.filter(|kill| *kill >= shown.at.minus(PASSED_SLACK_NS)) {
            shown.outcome = match kill {
                kill if kill < shown.forecast.earliest => "early",
                kill if kill <= shown.forecast.latest => "hit",
                _ => "miss",
            };
        } else if now > shown.forecast.latest.plus(PASSED_SLACK_NS) {
            shown.outcome = "miss";
        }
        shown.outcome != "pending"
    }

    fn take(&mut self, forecast: Forecast, now: UnixNanos, refresh_ns: u64) {
        match self.shown.as_ref().filter(|shown| shown.outcome == "pending") {
            Some(shown) => {
                let frozen = now.plus(FROZEN_BEFORE_NS) >= shown.forecast.earliest;
                if frozen || (now.since(shown.at) < refresh_ns && !moved(&shown.forecast, &forecast)) {
                    return;
                }
            }
            None => self.first = now,
        }
        self.shown = Some(Shown { forecast, at: now, outcome: "pending" });
    }

    /// When it was foretold first, if it is.
    pub fn first_told(&self) -> Option<UnixNanos> {
        self.shown.as_ref().map(|_| self.first)
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

#[cfg(test)]
mod tests {
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
            foretold.take(forecast(*at), UnixNanos(now * 1_000_000_000), 10_000_000_000);
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
