//! What a recording is about, before it is replayed: its names and the minutes it covers.

use std::collections::BTreeSet;
use std::io::BufRead;

use super::edit::Envelope;
use super::rename::Names;

/// Length of the cells in which coverage is counted.
const MINUTE_NS: u64 = 60_000_000_000;

/// Minutes that have lines, and names.
#[derive(Debug, Default)]
pub struct Survey {
    /// Minutes since 1970 in which there is any line.
    pub minutes: BTreeSet<u64>,
    /// Names, when they were asked for.
    pub names: Names,
}

impl Survey {
    /// Reads a recording to its end.
    pub fn of(source: Box<dyn BufRead>, with_names: bool) -> anyhow::Result<Self> {
        let mut survey = Self::default();
        for line in source.lines() {
            let line = line?;
            if line.trim().is_empty() {
                continue;
            }
            let envelope = Envelope::parse(&line)?;
            survey.minutes.insert(envelope.at()? / MINUTE_NS);
            if with_names {
                survey.names.collect(&serde_json::from_str(envelope.request.get())?);
            }
        }
        Ok(survey)
    }

    /// Seconds of which something is recorded: holes of a minute and more do not count.
    pub fn covered_seconds(&self) -> f64 {
        self.minutes.len() as f64 * 60.0
    }

    /// Seconds of which something is recorded and that lie outside all of these spans of Unix time.
    pub fn seconds_outside(&self, spans: &[(f64, f64)]) -> f64 {
        let is_free = |minute: &&u64| {
            let (from, to) = (**minute as f64 * 60.0, (**minute + 1) as f64 * 60.0);
            spans.iter().all(|(start, end)| to <= *start || from >= *end)
        };
        self.minutes.iter().filter(is_free).count() as f64 * 60.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_minutes_with_lines_are_covered() {
        let line = |s: u64| {
            format!("{{\"at_unix_nano\":\"{}\",\"signal\":\"traces\",\"request\":{{}}}}\n", s * 1_000_000_000)
        };
        let text: String = [0, 10, 61, 600].map(line).concat();
        let survey = Survey::of(Box::new(std::io::Cursor::new(text)), false).unwrap();
        assert_eq!(survey.covered_seconds(), 180.0);
        assert_eq!(survey.seconds_outside(&[(90.0, 100.0)]), 120.0, "the second minute is touched");
        assert_eq!(survey.seconds_outside(&[(60.0, 120.0), (0.0, 1.0)]), 60.0);
    }
}
