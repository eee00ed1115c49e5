//! Whether a budget burns too fast, and when it will be used up.
//!
//! Multiwindow, multi-burn-rate alerting of the Site Reliability Workbook (Google, 2018, chapter 5): 2 % of the budget within
//! a 720th of the objective's window (an hour of 30 days), or 5 % within a 120th (six hours), and as much for its part within
//! the control window, a twelfth of that, so that it is over soon after the errors are.

use tapio_schemas::finding::SCENARIO_BUDGET;
use tapio_schemas::signal::Forecast;
use tapio_schemas::{Score, UnixNanos};

use super::bounds::{changed_at, rate};
use super::config::Terms;
use super::ring::{Counts, Ring};

/// Share of the budget that is burnt, and the part of the objective's window in which.
const ALERTS: [(f64, u64); 2] = [(0.02, 720), (0.05, 120)];
/// How far back it is looked for when the errors began.
const LONGEST_PART: u64 = 120;
/// The control window is this part of the long one.
const CONTROL_PART: u64 = 12;
/// What is told is over below this share of what made it news.
const LEAVE: f64 = 0.5;
/// Fewer failures than this are no rate.
const FAILURES_MIN: u64 = 10;
/// The traffic wanders, too: the interval is widened by this share of the time that is left.
const WIDEN: f64 = 0.03;
/// Nothing less probable is told.
const PROBABILITY_MIN: f64 = 0.01;

/// How it stands with a budget.
#[derive(Debug, Clone, PartialEq)]
pub struct Burn {
    /// What was promised.
    pub terms: Terms,
    /// Since when the errors go on as they do now.
    pub onset: UnixNanos,
    /// Since when requests have been counted, within the objective's window.
    pub seen_from: UnixNanos,
    /// Requests and failures since then.
    pub total: Counts,
    /// Share of the budget that they have used up; what was burnt before is not known.
    pub used: f64,
    /// How many times faster than the objective allows it burns now.
    pub speed: f64,
    /// When it will be used up, while it burns; nothing once it is.
    pub forecast: Option<Forecast>,
    /// Since when it has been used up.
    pub used_up_at: Option<UnixNanos>,
}

/// State of one budget.
#[derive(Debug)]
pub struct Budget {
    terms: Terms,
    /// What was counted.
    pub ring: Ring,
    is_burning: bool,
    used_up_at: Option<UnixNanos>,
}

impl Budget {
    /// Nothing is counted before `since`.
    pub fn new(terms: Terms, since: UnixNanos) -> Self {
        Self::of(terms, Ring::new(terms.window_ns, since), false, None)
    }

    /// As it was.
    pub fn of(terms: Terms, ring: Ring, is_burning: bool, used_up_at: Option<UnixNanos>) -> Self {
        Self { terms, ring, is_burning, used_up_at }
    }

    /// What was counted, whether it burns too fast, and since when nothing is left.
    pub fn parts(&self) -> (&Ring, bool, Option<UnixNanos>) {
        (&self.ring, self.is_burning, self.used_up_at)
    }

    /// Judges it; `None` while nothing burns too fast.
    pub fn judge(&mut self, now: UnixNanos) -> Option<Burn> {
        let terms = self.terms;
        let total = self.ring.total(now);
        let seen_from = self.ring.seen_from(now);
        // The newest window ends now or before.
        let seen_ns = now.since(seen_from).max(1) as f64;
        // Failures that the objective allows in a whole window of the traffic that was seen.
        let per_window = total.requests as f64 * (terms.window_ns as f64 / seen_ns).max(1.0);
        let budget = (1.0 - terms.objective) * per_window;
        if budget <= 0.0 {
            (self.is_burning, self.used_up_at) = (false, None);
            return None;
        }
        let used = total.failures as f64 / budget;
        self.used_up_at = if used >= 1.0 { self.used_up_at.or(Some(now)) } else { None };
        let level = if self.is_burning { LEAVE } else { 1.0 };
        self.is_burning = ALERTS.iter().any(|(share, part)| self.burns(now, level * share * budget, *part));
        if !self.is_burning {
            return None;
        }
        let (from, failures) = self.ring.failures(now, terms.window_ns / LONGEST_PART);
        let bucket_ns = self.ring.bucket_ns();
        let passed = (now.minus(1).0 % bucket_ns + 1) as f64 / bucket_ns as f64;
        let cut = changed_at(&failures, passed);
        let onset = from.plus(cut as u64 * bucket_ns);
        let age_ns = now.since(onset).max(1) as f64;
        let rate = rate(&failures[cut..], age_ns);
        let speed = rate.mid * terms.window_ns as f64 / budget;
        let left = budget - total.failures as f64;
        let forecast = self.used_up_at.is_none().then(|| {
            let slack = bucket_ns as f64;
            let (best, soon, late) = (left / rate.mid, left / rate.high, left / rate.low);
            forecast(now, age_ns, best, (soon * (1.0 - WIDEN) - slack, late * (1.0 + WIDEN) + slack), terms)
        });
        let forecast = forecast.flatten();
        // What no longer burns faster than it may has stopped, however much of it is still in the windows.
        if forecast.is_none() && speed < 1.0 {
            self.is_burning = false;
            return None;
        }
        let used_up_at = self.used_up_at;
        Some(Burn { terms, onset, seen_from, total, used, speed, forecast, used_up_at })
    }

    fn burns(&self, now: UnixNanos, failures_min: f64, part: u64) -> bool {
        let length = self.terms.window_ns / part;
        let long = self.ring.last(now, length).failures;
        let control = self.ring.last(now, length / CONTROL_PART).failures;
        long >= FAILURES_MIN
            && long as f64 >= failures_min
            && control as f64 >= failures_min / CONTROL_PART as f64
    }

    /// True while it is to be judged even if nothing is counted.
    pub fn is_open(&self) -> bool {
        self.is_burning || self.used_up_at.is_some()
    }
}

/// `best`, and between which bounds it is, in ns from now. The probability is that of errors that have lasted for `age`
/// lasting `best` longer when nothing is known of their scale (Gott, Nature 363, 1993): age / (age + best).
fn forecast(now: UnixNanos, age_ns: f64, best: f64, bounds: (f64, f64), terms: Terms) -> Option<Forecast> {
    let window = terms.window_ns as f64;
    let probability = age_ns / (age_ns + best);
    if best > window || probability < PROBABILITY_MIN {
        return None;
    }
    let after = |ns: f64| now.plus(ns.clamp(0.0, 2.0 * window) as u64);
    Some(Forecast {
        scenario: SCENARIO_BUDGET.into(),
        probability: Score::clamped((probability * 100.0).round() / 100.0),
        at: after(best),
        earliest: after(bounds.0),
        latest: after(bounds.1),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const DAY: u64 = 86_400 * SECOND;

    fn at(second: u64) -> UnixNanos {
        UnixNanos(20_000 * DAY + second * SECOND)
    }

    fn budget(days: u64) -> Budget {
        Budget::new(Terms { objective: 0.999, window_ns: days * DAY }, at(0))
    }

    /// Counts windows of five seconds from one second to another, of which a share fails, judging after each.
    fn go(
        budget: &mut Budget,
        seconds: std::ops::Range<u64>,
        per_window: u64,
        failures: u64,
    ) -> Vec<Option<Burn>> {
        let windows = seconds.step_by(5).map(|second| {
            let (start, end) = (at(second), at(second + 5));
            budget.ring.add(start, end, Counts { requests: per_window, failures });
            budget.judge(end)
        });
        windows.collect()
    }

    #[test]
    fn an_outage_uses_up_the_budget_of_a_month_in_three_quarters_of_an_hour_as_foretold() {
        let mut budget = budget(30);
        assert!(go(&mut budget, 0..3600, 50, 0).iter().all(Option::is_none));
        // All fail: 2 % of the budget are gone after 52 s, all of it after 43 min.
        let told = go(&mut budget, 3600..7200, 50, 50);
        let first = told.iter().position(Option::is_some).expect("told");
        assert!((9..=12).contains(&first), "{first}");
        let used_up = told.iter().flatten().find_map(|burn| burn.used_up_at).expect("used up");
        assert!((2500..2700).contains(&(used_up.since(at(3600)) / SECOND)), "{used_up:?}");
        let of =
            |window: usize| told[window].as_ref().and_then(|burn| burn.forecast.clone()).expect("a forecast");
        for window in [24, 60, 240, 400] {
            let forecast = of(window);
            assert!(forecast.earliest <= used_up && used_up <= forecast.latest, "{window}: {forecast:?}");
        }
        assert!(of(400).probability > of(24).probability, "what has lasted lasts");
        assert!(told.last().unwrap().as_ref().unwrap().forecast.is_none(), "it is used up");
    }

    #[test]
    fn errors_within_the_objective_and_single_ones_are_no_burn() {
        let mut calm = budget(30);
        assert!(go(&mut calm, 0..36_000, 1000, 1).iter().all(Option::is_none), "as much as it may");
        let mut rare = budget(30);
        assert!(go(&mut rare, 0..3600, 1, 0).iter().all(Option::is_none));
        assert!(go(&mut rare, 3600..3640, 1, 1).iter().all(Option::is_none), "eight requests are no rate");
    }

    #[test]
    fn a_slow_burn_is_seen_in_the_long_window() {
        let mut budget = budget(30);
        go(&mut budget, 0..7200, 1000, 0);
        // 8 times as fast as it may: below 14.4, above 6.
        let told = go(&mut budget, 7200..7200 + 6 * 3600, 1000, 8);
        let first = told.iter().position(Option::is_some).expect("told");
        assert!(first * 5 > 3600, "{first}");
        let burn = told.last().unwrap().as_ref().unwrap();
        assert!((7.0..9.0).contains(&burn.speed), "{burn:?}");
        let forecast = burn.forecast.as_ref().expect("a forecast");
        assert!(forecast.probability.get() < 0.2, "days away: {forecast:?}");
    }

    #[test]
    fn it_is_over_soon_after_the_errors_are() {
        let mut budget = budget(30);
        go(&mut budget, 0..3600, 50, 0);
        assert!(go(&mut budget, 3600..3900, 50, 50).last().unwrap().is_some());
        let after = go(&mut budget, 3900..4800, 50, 0);
        let last = after.iter().rposition(Option::is_some).map_or(0, |at| at * 5);
        assert!(last <= 180, "told for {last} s after the last error");
    }

    #[test]
    fn a_budget_of_which_little_was_seen_counts_only_that() {
        let mut budget = budget(30);
        let told = go(&mut budget, 0..120, 50, 50);
        let burn = told.last().unwrap().as_ref().expect("told");
        assert_eq!(burn.seen_from, at(0));
        assert!((0.04..0.05).contains(&burn.used), "two minutes of 43: {burn:?}");
    }
}
