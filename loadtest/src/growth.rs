//! Whether processes settle under a load that goes on.

use std::time::Duration;

use crate::rig::process::Usage;
use crate::rig::stack::NATS;

/// Half a load of so many minutes is long enough to be judged: that of ten minutes is, and its samples span a little less than five,
/// because the last one is before the end.
const JUDGED_MINUTES: f64 = 4.9;

/// How resident memory of a process went over the second half of the load.
pub struct Growth {
    /// Name of the process.
    pub name: &'static str,
    /// Length of that half, minutes.
    minutes: f64,
    /// Slope of a line through the samples (least squares), MiB a minute.
    mib_per_minute: f64,
    /// Mean, MiB.
    mean_mib: f64,
}

impl Growth {
    /// For people.
    pub fn text(&self) -> String {
        format!("{:+.2} MiB/min around {:.1} MiB", self.mib_per_minute, self.mean_mib)
    }

    /// A half of five minutes in which it grew by a fifth of itself: it does not settle, and what it holds has no bound in sight.
    pub fn failure(&self) -> Option<String> {
        let is_judged = self.minutes >= JUDGED_MINUTES && self.name != NATS;
        let grows = self.mib_per_minute * self.minutes > self.mean_mib / 5.0;
        (is_judged && grows).then(|| format!("{} does not settle: {}", self.name, self.text()))
    }
}

/// Of each process; nothing of a load that was too short for a line.
pub fn of(sizes: &[(Duration, Vec<(&'static str, Usage)>)]) -> Vec<Growth> {
    let half = &sizes[sizes.len() / 2..];
    if half.len() < 10 {
        return Vec::new();
    }
    let minutes = (half[half.len() - 1].0 - half[0].0).as_secs_f64() / 60.0;
    let names = half[0].1.iter().map(|(name, _)| *name);
    let line = |name: &'static str| {
        let points: Vec<(f64, f64)> = half
            .iter()
            .filter_map(|(at, usages)| {
                let usage = usages.iter().find(|(known, _)| *known == name)?;
                Some((at.as_secs_f64() / 60.0, usage.1.rss_bytes as f64 / 1048576.0))
            })
            .collect();
        let n = points.len() as f64;
        let (mx, my) =
            (points.iter().map(|p| p.0).sum::<f64>() / n, points.iter().map(|p| p.1).sum::<f64>() / n);
        let above: f64 = points.iter().map(|p| (p.0 - mx) * (p.1 - my)).sum();
        let below: f64 = points.iter().map(|p| (p.0 - mx).powi(2)).sum();
        Growth { name, minutes, mib_per_minute: above / below.max(1e-9), mean_mib: my }
    };
    names.map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sample a second over so many minutes, with so many MiB at each minute.
    fn samples(
        name: &'static str,
        minutes: u64,
        mib: impl Fn(f64) -> f64,
    ) -> Vec<(Duration, Vec<(&'static str, Usage)>)> {
        let usage =
            |at: u64| Usage { rss_bytes: (mib(at as f64 / 60.0) * 1048576.0) as u64, ..Usage::default() };
        (0..60 * minutes).map(|at| (Duration::from_secs(at), vec![(name, usage(at))])).collect()
    }

    #[test]
    fn who_settles_is_let_be_and_who_grows_for_ever_is_not() {
        let settles = of(&samples("correlator", 12, |minute| 100.0 + 80.0 * (minute / 4.0).min(1.0)));
        assert!(settles[0].failure().is_none() && settles[0].mib_per_minute.abs() < 1e-6);
        let grows = of(&samples("correlator", 12, |minute| 100.0 + 10.0 * minute));
        let failure = grows[0].failure().expect("it grows by a third in the second half");
        assert_eq!(failure, "correlator does not settle: +10.00 MiB/min around 189.9 MiB");
        let ten_minutes = of(&samples("correlator", 10, |minute| 100.0 + 10.0 * minute));
        assert!(ten_minutes[0].failure().is_some(), "ten minutes are long enough");
    }

    #[test]
    fn a_short_load_and_the_server_are_not_judged() {
        let grows = |minute| 100.0 + 50.0 * minute;
        assert!(of(&samples("correlator", 8, grows))[0].failure().is_none());
        assert!(of(&samples(NATS, 12, grows))[0].failure().is_none());
        assert!(of(&samples("correlator", 12, grows)[..10]).is_empty());
    }
}
