//! A finding for people: at most a screen, root cause first.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use tapio_schemas::finding::{ChainLink, Prediction, Status};
use tapio_schemas::learning::Feedback;
use tapio_schemas::{Entity, Finding, Signal, UnixNanos};

use crate::commands::why::Similar;
use crate::verdict::ContainerLog;

const CHAIN_LINES_MAX: usize = 12;
const WIDTH: usize = 100;
/// What is left of it beside label and time.
const SAYS_WIDTH: usize = WIDTH - 22;
const ALTERNATIVES_MAX: usize = 4;
/// What a line of news tells beside what and where: the first of these that is known.
const FACTS_OF_NEWS: [&str; 6] = ["message", "image_new", "new", "reason", "signal_name", "comm"];

/// One line: time, severity, title.
pub fn line(finding: &Finding) -> String {
    let status = match finding.status {
        Status::Active => String::new(),
        other => format!(" [{other}]"),
    };
    format!(
        "{} {:<8} {}{} (confidence {:.2}, {} r{})",
        clock(finding.emitted_at),
        finding.severity.as_str(),
        finding.title,
        status,
        finding.confidence.get(),
        finding.id,
        finding.revision
    )
}

/// One line of a first word: time to the millisecond, what, where, and a fact.
pub fn news(signal: &Signal) -> String {
    let text = signal.onset.to_string();
    let time =
        text.split('T').nth(1).and_then(|t| t.get(..12)).map_or_else(|| clock(signal.onset), str::to_owned);
    let peer = signal.peer.as_ref().map_or_else(String::new, |peer| format!(" → {peer}"));
    let fact = FACTS_OF_NEWS.iter().find_map(|key| signal.attribute(key)?.as_text().map(str::to_owned));
    let fact = fact.map_or_else(String::new, |fact| format!(": {fact}"));
    format!("{time} {} {}{peer}{fact} (not yet a verdict)", signal.kind.as_str(), signal.entity.subject())
}

/// The whole story.
pub fn story(finding: &Finding) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{}: {}", finding.severity.as_str().to_uppercase(), finding.title);
    let _ = writeln!(out, "{}, since {}, {}", finding.status, finding.first_bad_at, finding.id);
    if let Some(other) = finding.superseded_by {
        let _ = writeln!(out, "Part of     {other}: tapio why {other}");
    }
    let _ = writeln!(out, "\n{}", wrap(&finding.story, WIDTH));
    if let Some(root) = &finding.root_cause {
        let _ = writeln!(
            out,
            "\nRoot cause  {} in {} (confidence {:.2}, {} pieces of evidence)",
            root.cause,
            root.entity,
            finding.confidence.get(),
            root.evidence.len()
        );
    } else {
        let _ = writeln!(out, "\nRoot cause  not provable from the evidence at hand");
    }
    chain(&mut out, &finding.chain);
    predictions(&mut out, &finding.foretold().collect::<Vec<_>>());
    alternatives(&mut out, finding);
    for action in &finding.actions {
        let _ = writeln!(out, "\nDo          {} (risk {})", action.title, action.risk);
        let _ = writeln!(out, "            $ {}", action.command);
        if !action.undo.is_empty() {
            let _ = writeln!(out, "       undo $ {}", action.undo);
        }
    }
    for gap in &finding.freshness.gaps {
        let _ = writeln!(out, "\nIncomplete  {gap}");
    }
    out
}

/// What is known of a finding since it was published.
pub fn since(said: Option<&Feedback>, similar: Option<&Similar>) -> String {
    let mut out = String::new();
    if let Some(said) = said {
        let _ = writeln!(out, "\nSaid        {}", feedback(said));
    }
    let Some(similar) = similar else { return out };
    let _ = writeln!(
        out,
        "\nLike        {} ({}, {:.0} % alike)",
        similar.title,
        similar.id,
        similar.similarity * 100.0
    );
    let outcome = match similar.recovered_after_s {
        Some(seconds) => format!("recovered after {}", duration(seconds)),
        None => similar.status.to_string(),
    };
    let said = similar.feedback.as_ref().map(|said| format!("; said: {}", feedback(said)));
    let _ = writeln!(out, "            {outcome}{}", said.unwrap_or_default());
    out
}

/// What the containers of a finding said last, as far as `logs` have it.
pub fn last_words(finding: &Finding, logs: &[ContainerLog]) -> String {
    let mut out = String::new();
    for log in logs.iter().filter(|log| log.finding == finding.id) {
        let life = if log.previous == Some(true) { ", before it began anew" } else { "" };
        let _ =
            writeln!(out, "\nLast words of {}/{} container {}{life}:", log.namespace, log.pod, log.container);
        for line in &log.lines {
            let _ = writeln!(out, "            {line}");
        }
    }
    out
}

/// What was said, in one line.
pub fn feedback(said: &Feedback) -> String {
    let mut line = said.judgement.to_string();
    if let Some(actual) = &said.actual {
        let cause = actual.cause.as_ref().map(|cause| format!(", it was {cause}")).unwrap_or_default();
        let place = actual.entity.as_ref().map(|entity| format!(" in {}", named(entity))).unwrap_or_default();
        let _ = write!(line, "{cause}{place}");
    }
    for (label, text) in [("what helped", &said.fix), ("note", &said.note)] {
        if !text.is_empty() {
            let _ = write!(line, "; {label}: {text}");
        }
    }
    line
}

/// A query for an entity as it was written.
fn named(entity: &Entity) -> String {
    let parts = [&entity.namespace, &entity.kind, &entity.name];
    parts.into_iter().filter(|part| !part.is_empty()).map(|part| part.as_str()).collect::<Vec<_>>().join("/")
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// Links of the same words are one line: the same happened in several places. What happened again in a place is told again.
fn chain(out: &mut String, links: &[ChainLink]) {
    let mut folded: Vec<(&ChainLink, BTreeSet<&Entity>)> = Vec::new();
    for link in links {
        let is_same = |first: &ChainLink| uncounted(&first.says) == uncounted(&link.says);
        // The first line that does not have this place yet takes it.
        if !folded.iter_mut().any(|(first, places)| is_same(first) && places.insert(&link.entity)) {
            folded.push((link, BTreeSet::from([&link.entity])));
        }
    }
    for (i, (link, places)) in folded.iter().take(CHAIN_LINES_MAX).enumerate() {
        let label = if i == 0 { "\nWhat        " } else { "            " };
        let says = match places.len() {
            1 => link.says.clone(),
            many => format!("{} (in {many} places)", uncounted(&link.says)),
        };
        let says = wrap(&says, SAYS_WIDTH).replace('\n', "\n                      ");
        let _ = writeln!(out, "{label}{}  {says}", clock(link.at));
    }
    let left = folded.len().saturating_sub(CHAIN_LINES_MAX);
    if left > 0 {
        let _ = writeln!(out, "            … and {left} more");
    }
}

/// Words without how often.
fn uncounted(words: &str) -> &str {
    match words.rfind(" (") {
        Some(at) if words.ends_with(" times)") => &words[..at],
        _ => words,
    }
}

fn predictions(out: &mut String, foretold: &[&Prediction]) {
    // What came or did not come is no more ahead.
    let is_ahead = foretold.iter().any(|p| p.outcome.as_deref().is_none_or(|outcome| outcome == "pending"));
    let first = if is_ahead { "\nNext        " } else { "\nForetold    " };
    for (i, p) in foretold.iter().enumerate() {
        let label = if i == 0 { first } else { "            " };
        let of = p.entity.as_ref().map_or_else(String::new, |entity| format!(" of {entity}"));
        let _ = write!(
            out,
            "{label}{}{of} at {} (between {} and {}, probability {:.2})",
            p.scenario.replace('_', " "),
            clock(p.at),
            clock(p.interval.0),
            clock(p.interval.1),
            p.probability.get()
        );
        match &p.outcome {
            Some(outcome) => {
                let _ = writeln!(out, ": {outcome}");
            }
            None => out.push('\n'),
        }
    }
}

fn alternatives(out: &mut String, finding: &Finding) {
    let refuted = finding.hypotheses.iter().skip(1).take(ALTERNATIVES_MAX);
    for (i, h) in refuted.enumerate() {
        let label = if i == 0 { "\nNot         " } else { "            " };
        let why = if !h.refuted_by.is_empty() {
            h.refuted_by.join("; ")
        } else if !h.missing.is_empty() {
            format!("missing: {}", h.missing.join("; "))
        } else {
            "less probable".to_owned()
        };
        let says = format!("{} in {} ({:.2}): {why}", h.cause, h.entity, h.probability.get());
        let _ = writeln!(out, "{label}{}", wrap(&says, WIDTH - 14).replace('\n', "\n              "));
    }
}

/// `HH:MM:SS` UTC.
pub fn clock(at: UnixNanos) -> String {
    let text = at.to_string();
    text.split('T').nth(1).and_then(|t| t.get(..8)).unwrap_or("--:--:--").to_owned()
}

fn wrap(text: &str, width: usize) -> String {
    let mut out = String::new();
    for paragraph in text.lines() {
        let mut column = 0;
        for word in paragraph.split_whitespace() {
            if column > 0 && column + 1 + word.chars().count() > width {
                out.push('\n');
                column = 0;
            } else if column > 0 {
                out.push(' ');
                column += 1;
            }
            out.push_str(word);
            column += word.chars().count();
        }
        out.push('\n');
    }
    out.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tapio_schemas::Score;

    #[test]
    fn text_wraps_between_words() {
        assert_eq!(wrap("one two three", 7), "one two\nthree");
    }

    #[test]
    fn the_same_words_of_several_places_are_one_line_and_of_one_place_at_two_times_two() {
        let link = |second: u64, pod: &str, says: &str| ChainLink {
            at: UnixNanos(1_700_000_000_000_000_000).plus(second * 1_000_000_000),
            entity: Entity::namespaced("Pod", "shop", pod),
            signal: "pod.crash".into(),
            says: says.to_owned(),
            evidence: Vec::new(),
        };
        let told = |links: &[ChainLink]| {
            let mut out = String::new();
            chain(&mut out, links);
            out.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect::<Vec<_>>()
        };
        let links = [
            link(0, "a", "it ended (3 times)"),
            link(1, "b", "it ended"),
            link(60, "a", "it ended (2 times)"),
            link(61, "b", "it ended"),
            link(62, "c", "it ended"),
            link(90, "a", "it ended"),
        ];
        let expected = [
            "What        22:13:20  it ended (in 3 places)",
            "22:14:20  it ended (in 2 places)",
            "22:14:50  it ended",
        ];
        assert_eq!(told(&links), expected);
        assert_eq!(told(&links[..1]), ["What        22:13:20  it ended (3 times)"]);
    }

    #[test]
    fn what_came_or_did_not_come_is_no_more_ahead() {
        let told = |outcomes: &[&str]| {
            let one = |outcome: &&str| Prediction {
                entity: None,
                scenario: "oom_kill".into(),
                probability: Score::ONE,
                at: UnixNanos(1),
                interval: (UnixNanos(0), UnixNanos(2)),
                outcome: Some((*outcome).into()),
            };
            let all: Vec<Prediction> = outcomes.iter().map(one).collect();
            let mut out = String::new();
            predictions(&mut out, &all.iter().collect::<Vec<_>>());
            out
        };
        assert!(told(&["hit", "pending"]).starts_with("\nNext  "), "{}", told(&["hit", "pending"]));
        assert!(told(&["hit", "miss"]).starts_with("\nForetold  "), "{}", told(&["hit", "miss"]));
    }

    #[test]
    fn a_clock_is_the_time_of_day_in_utc() {
        assert_eq!(clock(UnixNanos(1_700_000_000_123_000_000)), "22:13:20");
    }
}
