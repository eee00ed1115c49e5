//! What a container that failed said last.

use std::collections::HashMap;

use tapio_schemas::payload::LogData;
use tapio_schemas::{SignalKind, UnifiedEvent};

use super::episode::Observation;
use super::templates;

/// Lines that are told of a container.
pub const LINES_MAX: usize = 8;

/// The lines of an event `runtime.container_said`. Each life of a container has its own last words.
pub(super) fn told(event: &UnifiedEvent, data: &LogData) -> Observation {
    let lines: Vec<&str> = data.body.lines().collect();
    let mut seen = Observation::new(SignalKind::LastWords, &event.entity, event.timestamp, event.id);
    seen.topic = event.id.0 as u64;
    seen.with("lines", folded(&lines).join("\n").as_str())
}

/// Lines of one template are told once: the last of them, with their count. At most `LINES_MAX`, oldest first.
pub fn folded<L: AsRef<str>>(lines: &[L]) -> Vec<String> {
    let (mut counts, mut template) = (HashMap::<String, usize>::new(), String::new());
    let mut kept: Vec<(String, &str)> = Vec::new();
    for line in lines.iter().map(AsRef::as_ref).rev() {
        templates::line(line, &mut template);
        let count = counts.entry(template.clone()).or_default();
        *count += 1;
        if *count == 1 {
            kept.push((template.clone(), line));
        }
    }
    let told = kept.into_iter().take(LINES_MAX).map(|(template, line)| match counts[&template] {
        1 => line.to_owned(),
        count => format!("{line} ({count} like it)"),
    });
    let mut told: Vec<String> = told.collect();
    told.reverse();
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_alike_are_told_once_in_the_order_of_their_last() {
        let lines = ["starting", "retry 1 of 3", "retry 2 of 3", "retry 3 of 3", "panic: no database"];
        assert_eq!(folded(&lines), ["starting", "retry 3 of 3 (3 like it)", "panic: no database"]);
        assert!(folded::<&str>(&[]).is_empty());
    }
}
