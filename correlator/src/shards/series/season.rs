//! What a series usually is at this time of the day, or of the week.
//!
//! Each half hour of a day keeps the mean, the lowest and the highest of its samples, so one sample a minute does, and a half
//! hour without any is a gap. Every midnight (UTC) it is judged whether a season explains the series: the day's median is taken
//! off, the season is the median over the days of each half hour, the rest is what is left. The strength of the season is
//! `1 − Var(rest) / Var(season + rest)` (Wang, Smith and Hyndman, Data Mining and Knowledge Discovery 13, 2006; Hyndman and
//! Athanasopoulos, Forecasting: Principles and Practice, §4.3), the variance of the rest by median absolute deviations, so that
//! one bad day is none of the noise. Below 0.64, the bound of their test for seasonal differences, or before two whole
//! seasons were seen, there is none.

use std::collections::VecDeque;

use tapio_schemas::UnixNanos;

use super::trend::median;

/// Parts of a day.
const PARTS: usize = 48;
const PART_NS: u64 = 1_800_000_000_000;
/// Days kept: two weeks and the one that goes on.
const DAYS_MAX: usize = 15;
const WEEK: u64 = 7;
/// A day is whole with samples in this many of its parts.
const PARTS_MIN: usize = 36;
/// Seasons that must have been seen.
const SEASONS_MIN: usize = 2;
/// Strength from which on a season explains a series.
const STRENGTH_MIN: f64 = 0.64;
/// What the week leaves unexplained must be less than this share of what the day does.
const WEEK_LEAVES: f64 = 0.5;
/// From the median absolute deviation to the standard deviation of normal noise.
const MAD_SCALE: f64 = 1.4826;
/// What is usual is left by this factor of the highest, or lowest, of its time.
const BEYOND: f64 = 1.25;

/// Bytes that one season holds at most.
pub const SEASON_BYTES: usize = std::mem::size_of::<Season>() + (DAYS_MAX + 1) * std::mem::size_of::<Day>();

#[derive(Debug, Clone, Copy, Default)]
struct Part {
    count: u32,
    mean: f32,
    low: f32,
    high: f32,
}

#[derive(Debug, Clone)]
struct Day {
    number: u64,
    parts: [Part; PARTS],
}

impl Day {
    fn is_whole(&self) -> bool {
        self.parts.iter().filter(|part| part.count > 0).count() >= PARTS_MIN
    }

    fn median(&self) -> f64 {
        median(
            &mut self
                .parts
                .iter()
                .filter(|part| part.count > 0)
                .map(|part| f64::from(part.mean))
                .collect::<Vec<_>>(),
        )
    }
}

/// Which time comes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// Each day is like the others.
    Day,
    /// Each day is like the same one of other weeks.
    Week,
}

/// What is known of the season of a series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Knows {
    /// Fewer than two whole days were seen: so many.
    Cold(usize),
    /// No season explains it.
    None,
    /// One does.
    Season(Period),
}

/// What is usual at a time of the season.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usual {
    /// Lowest.
    pub low: f64,
    /// Highest.
    pub high: f64,
}

impl Usual {
    /// Above this a value is more than usual at this time.
    pub fn above(self) -> f64 {
        self.high + (BEYOND - 1.0) * self.high.abs()
    }
}

/// The days of one series.
#[derive(Debug, Default)]
pub struct Season {
    /// Oldest first; the last one goes on.
    days: VecDeque<Day>,
    period: Option<Period>,
    whole: usize,
}

impl Season {
    /// Takes a sample. What is of a day before the last one is too late.
    pub fn learn(&mut self, at: UnixNanos, value: f64) {
        let number = at.0 / (PARTS as u64 * PART_NS);
        if !value.is_finite() {
            return;
        }
        match self.days.back() {
            Some(last) if number < last.number => return,
            Some(last) if number == last.number => {}
            _ => self.begin(number),
        }
        let Some(day) = self.days.back_mut() else { return };
        let part = &mut day.parts[(at.0 / PART_NS) as usize % PARTS];
        let value = value as f32;
        if part.count == 0 {
            *part = Part { count: 1, mean: value, low: value, high: value };
            return;
        }
        part.count = part.count.saturating_add(1);
        part.mean += (value - part.mean) / part.count as f32;
        (part.low, part.high) = (part.low.min(value), part.high.max(value));
    }

    /// Another day begins: judges those that are over.
    fn begin(&mut self, number: u64) {
        self.days.push_back(Day { number, parts: [Part::default(); PARTS] });
        let oldest = (number + 1).saturating_sub(DAYS_MAX as u64);
        while self.days.front().is_some_and(|day| day.number < oldest) {
            self.days.pop_front();
        }
        let days: Vec<&Day> = self.past().filter(|day| day.is_whole()).collect();
        let whole = days.len();
        let daily = strength(&[&days]);
        let of_weekday = |weekday| days.iter().copied().filter(|day| day.number % WEEK == weekday).collect();
        let weekdays: Vec<Vec<&Day>> = (0..WEEK).map(of_weekday).collect();
        let weekdays: Vec<&[&Day]> = weekdays.iter().map(Vec::as_slice).collect();
        let weekly = strength(&weekdays);
        let period = match (daily, weekly) {
            (_, Some(weekly)) if weekly >= STRENGTH_MIN && is_better(&weekdays, &days) => Some(Period::Week),
            (Some(daily), _) if daily >= STRENGTH_MIN => Some(Period::Day),
            _ => None,
        };
        (self.whole, self.period) = (whole, period);
    }

    /// Days that are over.
    fn past(&self) -> impl Iterator<Item = &Day> {
        self.days.iter().take(self.days.len().saturating_sub(1))
    }

    /// What is known.
    pub fn knows(&self) -> Knows {
        match self.period {
            Some(period) => Knows::Season(period),
            None if self.whole < SEASONS_MIN => Knows::Cold(self.whole),
            None => Knows::None,
        }
    }

    /// What is usual at this time; `None` without a season, or when nothing was seen at this time of it. Neighbouring parts count,
    /// too: what comes every day does not come on the second. Of several days the middle one counts, of two of them the one
    /// that is nearer to nothing: what was there once does not come every day.
    pub fn usual(&self, at: UnixNanos) -> Option<Usual> {
        let period = self.period?;
        let number = at.0 / (PARTS as u64 * PART_NS);
        let part = (at.0 / PART_NS) as usize % PARTS;
        let same = |day: &&Day| period == Period::Day || day.number % WEEK == number % WEEK;
        let around = |day: &Day| {
            let near = [part + PARTS - 1, part, part + 1].map(|near| day.parts[near % PARTS]);
            let mut near = near.into_iter().filter(|near| near.count > 0);
            let first = near.next()?;
            Some(near.fold((first.low, first.high), |all, p| (all.0.min(p.low), all.1.max(p.high))))
        };
        let bands = self.past().filter(|day| day.number < number).filter(same).filter_map(around);
        let (mut lows, mut highs): (Vec<f32>, Vec<f32>) = bands.unzip();
        if lows.len() < SEASONS_MIN {
            return None;
        }
        lows.sort_by(f32::total_cmp);
        highs.sort_by(f32::total_cmp);
        let (low, high) = (lows[lows.len() / 2], highs[(highs.len() - 1) / 2]);
        Some(Usual { low: f64::from(low), high: f64::from(high) })
    }
}

/// Strength of a season whose days are in groups of the same kind of day; `None` when a group has too few of them.
fn strength(groups: &[&[&Day]]) -> Option<f64> {
    let (mut season, mut rest) = (Vec::new(), Vec::new());
    for days in groups {
        if days.len() < SEASONS_MIN {
            return None;
        }
        // Weekdays differ in their level, too; of like days the level is the trend.
        let levels: Vec<f64> = if groups.len() == 1 {
            days.iter().map(|day| day.median()).collect()
        } else {
            vec![0.0; days.len()]
        };
        for part in 0..PARTS {
            let seen = days.iter().zip(&levels).filter(|(day, _)| day.parts[part].count > 0);
            let values: Vec<f64> = seen.map(|(day, level)| f64::from(day.parts[part].mean) - level).collect();
            if values.len() < SEASONS_MIN {
                continue;
            }
            let usual = median(&mut values.clone());
            season.push(usual);
            let apart = median(&mut values.iter().map(|value| (value - usual).abs()).collect::<Vec<_>>());
            rest.push((MAD_SCALE * apart).powi(2));
        }
    }
    if season.is_empty() {
        return None;
    }
    let n = season.len() as f64;
    let mean = season.iter().sum::<f64>() / n;
    let explained = season.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n;
    let left = rest.iter().sum::<f64>() / n;
    let all = explained + left;
    Some(if all > 0.0 { explained / all } else { 0.0 })
}

/// True when like days of the week are far more alike than days are. By squares, which see that two of seven days differ.
fn is_better(weekdays: &[&[&Day]], days: &[&Day]) -> bool {
    unexplained(weekdays) < WEEK_LEAVES * unexplained(&[days])
}

/// Mean of the variances of the parts over the days of a group.
fn unexplained(groups: &[&[&Day]]) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for days in groups {
        for part in 0..PARTS {
            let seen = days.iter().map(|day| day.parts[part]).filter(|part| part.count > 0);
            let values: Vec<f64> = seen.map(|part| f64::from(part.mean)).collect();
            if values.len() >= SEASONS_MIN {
                let mean = values.iter().sum::<f64>() / values.len() as f64;
                let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
                sum += squares / (values.len() - 1) as f64;
                count += 1.0;
            }
        }
    }
    if count > 0.0 { sum / count } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: u64 = 60_000_000_000;
    const DAY_MINUTES: u64 = 1440;

    fn at(minute: u64) -> UnixNanos {
        UnixNanos((20_000 * DAY_MINUTES + minute) * MINUTE)
    }

    /// Noise between 0 and 1, the same for the same number.
    fn noise(number: u64) -> f64 {
        (xxhash_rust::xxh3::xxh3_64(&number.to_le_bytes()) % 1000) as f64 / 1000.0
    }

    fn learnt(minutes: u64, value: impl Fn(u64) -> Option<f64>) -> Season {
        let mut season = Season::default();
        for minute in 0..minutes {
            if let Some(value) = value(minute) {
                season.learn(at(minute), value);
            }
        }
        season
    }

    /// A job at three in the morning, ten minutes long.
    fn job(minute: u64) -> f64 {
        let of_day = minute % DAY_MINUTES;
        let busy = if (180..190).contains(&of_day) { 4.0 } else { 0.0 };
        0.5 + busy + 0.2 * noise(minute)
    }

    #[test]
    fn a_job_of_every_night_is_usual_at_its_time_and_at_no_other() {
        let season = learnt(2 * DAY_MINUTES + 60, |minute| Some(job(minute)));
        assert_eq!(season.knows(), Knows::Season(Period::Day));
        let usual = |minute| season.usual(at(2 * DAY_MINUTES + minute)).expect("usual");
        assert!(usual(185).above() > 4.7 && usual(185).above() < 6.0, "{:?}", usual(185));
        assert!(usual(720).above() < 1.0, "{:?}", usual(720));
    }

    #[test]
    fn before_two_days_and_without_a_season_nothing_is_usual() {
        let cold = learnt(DAY_MINUTES + 60, |minute| Some(job(minute)));
        assert_eq!((cold.knows(), cold.usual(at(DAY_MINUTES + 185))), (Knows::Cold(1), None));
        let flat = learnt(5 * DAY_MINUTES, |minute| Some(1.0 + noise(minute)));
        assert_eq!((flat.knows(), flat.usual(at(5 * DAY_MINUTES))), (Knows::None, None));
        let constant = learnt(5 * DAY_MINUTES, |_| Some(1.0));
        assert_eq!(constant.knows(), Knows::None);
    }

    #[test]
    fn one_bad_day_is_no_season_and_does_not_end_one() {
        let bad = |minute: u64| (3 * DAY_MINUTES + 600..3 * DAY_MINUTES + 700).contains(&minute);
        let season =
            learnt(5 * DAY_MINUTES, |minute| Some(job(minute) + if bad(minute) { 50.0 } else { 0.0 }));
        assert_eq!(season.knows(), Knows::Season(Period::Day));
        assert!(season.usual(at(5 * DAY_MINUTES + 650)).expect("usual").above() < 1.0);
        let only = learnt(3 * DAY_MINUTES, |minute| {
            Some(0.5 + 0.2 * noise(minute) + if (2000..2060).contains(&minute) { 9.0 } else { 0.0 })
        });
        let seen = only.usual(at(3 * DAY_MINUTES + 2000 % DAY_MINUTES));
        assert!(seen.is_none_or(|usual| usual.above() < 1.0), "{seen:?}");
    }

    #[test]
    fn working_days_and_the_rest_differ_once_two_weeks_were_seen() {
        let week = |minute: u64| {
            let (day, of_day) = (minute / DAY_MINUTES % 7, minute % DAY_MINUTES);
            let works = day < 5 && (480..1080).contains(&of_day);
            Some(if works { 10.0 } else { 1.0 } + 0.5 * noise(minute))
        };
        let season = learnt(15 * DAY_MINUTES, week);
        assert_eq!(season.knows(), Knows::Season(Period::Week));
        let usual = |day: u64| season.usual(at(day * DAY_MINUTES + 700)).expect("usual").above();
        assert!(usual(15) > 10.0 && usual(19) < 3.0, "{} {}", usual(15), usual(19));
    }

    #[test]
    fn gaps_are_no_days_and_memory_is_bounded() {
        let half = learnt(6 * DAY_MINUTES, |minute| (minute % DAY_MINUTES < 600).then(|| job(minute)));
        assert_eq!(half.knows(), Knows::Cold(0), "no day is whole");
        let long = learnt(100 * DAY_MINUTES, |minute| (minute % 5 == 0).then(|| job(minute)));
        assert!(long.days.len() <= DAYS_MAX);
        let mut late = long;
        let days = late.days.len();
        late.learn(at(3), 1e9);
        assert_eq!(late.days.len(), days, "a day before is too late");
    }

    proptest! {
        #[test]
        fn what_is_usual_was_seen(seed in 0u64..1000, days in 2u64..6, missing in 0u64..30) {
            let value = |minute: u64| {
                let is_missing = noise(minute ^ seed << 32) * 100.0 < missing as f64;
                (!is_missing).then(|| job(minute) * (1.0 + seed as f64 / 100.0))
            };
            let season = learnt(days * DAY_MINUTES + 1, value);
            let highest = (0..days * DAY_MINUTES).filter_map(value).fold(0.0f64, f64::max) as f32;
            for part in 0..PARTS as u64 {
                if let Some(usual) = season.usual(at(days * DAY_MINUTES + part * 30)) {
                    prop_assert!(usual.low <= usual.high && usual.high <= f64::from(highest));
                }
            }
        }
    }
}
