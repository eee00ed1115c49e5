//! The story: what happened, why, how we know, what is next, what to do. Never a sentence without data behind it.

use std::collections::BTreeSet;

use tapio_schemas::finding::{Action, Prediction, Status};
use tapio_schemas::{Entity, Signal, UnixNanos};

use super::candidates::Candidate;
use super::says;
use super::signals::{is_change, open_ns};
use super::view::View;
use crate::model::{Pattern, Template, TemplateValue, clock_time};

/// What templates can speak of.
pub struct Teller<'a> {
    /// The signals.
    pub view: &'a View<'a>,
    /// The cause, with what it explains.
    pub cause: &'a Candidate<'a>,
    /// Signals of the incident, in time order.
    pub members: &'a [usize],
    /// What is foretold.
    pub prediction: Option<&'a Prediction>,
    /// When it was foretold first.
    pub first_told: Option<UnixNanos>,
}

impl Teller<'_> {
    fn pattern(&self) -> &Pattern {
        self.cause.pattern
    }

    fn lookup(&self, path: &str) -> Option<TemplateValue> {
        let (root, field) = path.split_once('.').unwrap_or((path, ""));
        match root {
            "seat" => seat(&self.cause.seat, field),
            "forecast" => forecast(self.prediction?, field),
            "change" => {
                let last = self.cause.changes.last()?;
                signal_field(self.view.signals[*last], field)
            }
            name => {
                let explained = self.cause.explains.iter().filter(|(at, _)| self.members.contains(at));
                let named = explained.filter(|(_, (_, symptom))| {
                    self.pattern().symptoms[*symptom].name.as_deref() == Some(name)
                });
                let several: Vec<usize> = named.map(|(at, _)| *at).collect();
                if field == "since" {
                    let onset = several.iter().map(|at| self.view.signals[*at].onset).min()?;
                    return Some(TemplateValue::Time(onset));
                }
                let at = self.told(several).or_else(|| self.named_change(name))?;
                signal_field(self.view.signals[at], field)
            }
        }
    }

    /// The last change that speaks for the cause under this name.
    fn named_change(&self, name: &str) -> Option<usize> {
        let spec = self.pattern().changes.iter().find(|c| c.name.as_deref() == Some(name))?;
        self.cause.changes.iter().copied().rev().find(|at| self.view.signals[*at].kind == spec.signal)
    }

    /// Which of several signals of one symptom is spoken of: the last one, for it goes on. Of changes the one after which
    /// it first failed: a later one, such as going back, is not what broke it.
    fn told(&self, mut several: Vec<usize>) -> Option<usize> {
        // One that knows what is usual tells more than one that does not.
        let knows_usual = |at: usize| self.view.signals[at].baseline.is_finite();
        several.sort_unstable_by_key(|at| (knows_usual(*at), self.view.signals[*at].onset, *at));
        let (first, last) = (*several.first()?, *several.last()?);
        if !is_change(self.view.signals[last].kind) {
            return Some(last);
        }
        let explained = self.cause.explains.keys().filter(|at| self.members.contains(at));
        let failures = explained.map(|at| self.view.signals[*at]).filter(|s| !is_change(s.kind));
        let failed = failures.map(|s| s.onset.plus(open_ns(s))).min()?;
        Some(several.into_iter().rev().find(|at| self.view.signals[*at].onset <= failed).unwrap_or(first))
    }

    fn first(&self, templates: &[Template]) -> Option<String> {
        templates.iter().find_map(|t| t.fill(&|path| self.lookup(path)))
    }

    /// One line.
    pub fn title(&self) -> String {
        self.first(&self.pattern().title)
            .unwrap_or_else(|| format!("{} on {}", self.pattern().id, says::name(&self.cause.seat)))
    }

    /// The story; `ahead` are sentences on what is foretold elsewhere.
    pub fn story(&self, status: Status, ahead: &[String], gaps: usize) -> String {
        let story = &self.pattern().story;
        let mut sentences: Vec<String> = self.first(&story.what).into_iter().collect();
        let unopposed = story.unopposed.iter().filter(|_| self.cause.refuted.is_empty());
        sentences.extend(story.why.iter().chain(unopposed).filter_map(|t| t.fill(&|path| self.lookup(path))));
        sentences.push(how_we_know(self.view, self.members, Some(&self.cause.seat)));
        if status == Status::Recovered {
            sentences.push(over(self.view, self.members));
        } else {
            sentences.extend(self.first(&story.next));
            sentences.extend_from_slice(ahead);
        }
        sentences.extend(self.prediction.zip(self.first_told).and_then(|(p, first)| outcome(p, first)));
        if let Some(action) = self.actions(status).first().filter(|_| status != Status::Recovered) {
            sentences.push(format!("To do: {}.", action.title.trim_end_matches('.')));
        }
        if gaps > 0 {
            sentences.push("Some events were lost in this time, so this may be incomplete.".to_owned());
        }
        told(&sentences)
    }

    /// What to do. When it is over only what has a low risk: it may come again, but whoever went back a version must not be told
    /// to do so once more.
    pub fn actions(&self, status: Status) -> Vec<Action> {
        let fits = |risk: &str| status != Status::Recovered || risk == "low";
        let fill = |t: &Template| t.fill(&|path| self.lookup(path));
        self.pattern()
            .actions
            .iter()
            .filter(|a| fits(&a.risk))
            .filter(|a| {
                let facts = crate::model::Facts::default();
                a.when.as_ref().is_none_or(|when| when.holds(None, &self.cause.seat, &facts))
            })
            .filter_map(|a| {
                Some(Action {
                    title: fill(&a.title)?,
                    risk: a.risk.clone(),
                    command: fill(&a.command)?,
                    undo: a.undo.as_ref().map_or(Some(String::new()), fill)?,
                })
            })
            .collect()
    }
}

/// Why a refuter speaks against its cause.
pub fn refutation(template: &Template, seat: &Entity, signal: &Signal) -> Option<String> {
    template.fill(&|path| {
        let (root, field) = path.split_once('.').unwrap_or((path, ""));
        if root == "seat" { self::seat(seat, field) } else { signal_field(signal, field) }
    })
}

/// Why a share speaks against its cause.
pub fn tempering(template: &Template, seat: &Entity, share: f64) -> Option<String> {
    template.fill(&|path| match path.split_once('.').unwrap_or((path, "")) {
        ("seat", field) => self::seat(seat, field),
        ("share", "") => Some(TemplateValue::Number(share)),
        _ => None,
    })
}

/// The title when no cause can be named.
pub fn unproven_title(home: &Entity, first: &Signal) -> String {
    format!("{}: {}; the cause is not provable", says::name(home), says::sentence(first))
}

/// The story when no cause can be named.
pub fn unproven_story(view: &View<'_>, members: &[usize], considered: &[String], status: Status) -> String {
    let mut sentences = vec![how_we_know(view, members, None)];
    sentences.push(match considered {
        [] => "No known cause explains this.".to_owned(),
        [one] => format!("It may be {one}, but the evidence does not prove it."),
        many => format!("The evidence does not single out one of: {}.", many.join("; ")),
    });
    if status == Status::Recovered {
        sentences.push(over(view, members));
    }
    told(&sentences)
}

/// When the last of it was seen.
fn over(view: &View<'_>, members: &[usize]) -> String {
    let last = members.iter().map(|at| view.signals[*at].last_seen).max().unwrap_or_default();
    format!("It is over as of {}.", clock_time(last))
}

/// Sentences one after the other. A message that ends with a full stop, or was cut off, quoted at the end of one, gives it
/// a second one.
fn told(sentences: &[String]) -> String {
    let text = sentences.join(" ");
    let mut out = String::with_capacity(text.len());
    for (at, c) in text.char_indices() {
        let is_second = c == '.' && (out.ends_with('…') || out.ends_with('.') && !out.ends_with(".."));
        let rest = &text[at + c.len_utf8()..];
        if !(is_second && (rest.is_empty() || rest.starts_with(' '))) {
            out.push(c);
        }
    }
    out
}

fn how_we_know(view: &View<'_>, members: &[usize], seat: Option<&Entity>) -> String {
    const SHOWN_MAX: usize = 6;
    let mut alike: Vec<(String, Vec<usize>)> = Vec::new();
    for at in members {
        let words = says::brief(view.signals[*at]);
        match alike.iter_mut().find(|(known, _)| says::uncounted(known) == says::uncounted(&words)) {
            Some((_, places)) => places.push(*at),
            None => alike.push((words, vec![*at])),
        }
    }
    let shown: Vec<String> = alike.iter().take(SHOWN_MAX).map(|group| seen(view, group, seat)).collect();
    let rest = match alike.len().saturating_sub(SHOWN_MAX) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    format!("Seen: {}{rest}.", shown.join("; "))
}

/// One thing that was seen, in one place or in several: when first, what, and where when that is not the cause's own place.
fn seen(view: &View<'_>, (words, places): &(String, Vec<usize>), seat: Option<&Entity>) -> String {
    let (at, words) = (clock_time(view.signals[places[0]].onset), says::shortened(words));
    if let [one] = places[..] {
        let elsewhere = seat != Some(&view.homes[one]);
        let place = elsewhere.then(|| format!(" on {}", says::name(&view.signals[one].entity.subject())));
        return format!("{at} {words}{}", place.unwrap_or_default());
    }
    let subjects: BTreeSet<Entity> =
        places.iter().map(|at| view.signals[*at].entity.subject().clone()).collect();
    match subjects.len() {
        1 => format!("{at} {words}"),
        many => format!("{at} {} ({many} {})", says::uncounted(&words), says::places(&subjects)),
    }
}

fn outcome(prediction: &Prediction, first: UnixNanos) -> Option<String> {
    let (from, to) = (clock_time(prediction.interval.0), clock_time(prediction.interval.1));
    let first = clock_time(first);
    match prediction.outcome.as_deref()? {
        "hit" => Some(format!("It was foretold since {first}, at last for {from} to {to}.")),
        "miss" => {
            Some(format!("It was foretold since {first}, but the last forecast, {from} to {to}, was wrong."))
        }
        "early" => Some(format!(
            "It was foretold since {first}, and came before the time last told, {from} to {to}."
        )),
        "not_due" => Some(format!(
            "What was foretold for {from} to {to} is not to be expected any more: its reason went away."
        )),
        _ => None,
    }
}

fn seat(seat: &Entity, field: &str) -> Option<TemplateValue> {
    Some(TemplateValue::Text(match field {
        "" => says::name(seat),
        "name" => seat.name.to_string(),
        "kind" => seat.kind.to_string(),
        "kind_lower" => seat.kind.to_lowercase(),
        "namespace" => seat.namespace.to_string(),
        "node" => seat.node.to_string(),
        _ => return None,
    }))
}

fn forecast(prediction: &Prediction, field: &str) -> Option<TemplateValue> {
    if prediction.outcome.as_deref() != Some("pending") {
        return None;
    }
    let time = |at: UnixNanos| Some(TemplateValue::Time(at));
    match field {
        "at" => time(prediction.at),
        "earliest" => time(prediction.interval.0),
        "latest" => time(prediction.interval.1),
        "probability" => Some(TemplateValue::Number(prediction.probability.get())),
        _ => None,
    }
}

fn signal_field(signal: &Signal, field: &str) -> Option<TemplateValue> {
    Some(match field {
        "onset" => TemplateValue::Time(signal.onset),
        "last_seen" => TemplateValue::Time(signal.last_seen),
        "count" => TemplateValue::Number(signal.count as f64),
        "observed" => TemplateValue::Number(signal.observed),
        "baseline" => TemplateValue::Number(signal.baseline),
        "pid" if signal.pid != 0 => TemplateValue::Number(f64::from(signal.pid)),
        "kind" => TemplateValue::Text(signal.kind.to_string()),
        "entity" => TemplateValue::Text(says::name(&signal.entity.subject())),
        "owner" => TemplateValue::Text(says::name(&signal.entity.owner())),
        "says" => TemplateValue::Text(says::sentence(signal)),
        "peer" => TemplateValue::Text(signal.peer.as_ref().map(says::name)?),
        other => match signal.attribute(other)? {
            tapio_schemas::AttributeValue::Text(text) => TemplateValue::Text(text.to_string()),
            value => TemplateValue::Number(value.as_f64()?),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::told;

    #[test]
    fn a_quoted_full_stop_is_not_said_twice() {
        let said = ["It waits: no machine has room..".to_owned(), "So on... It goes on … é.".to_owned()];
        assert_eq!(told(&said), "It waits: no machine has room. So on... It goes on … é.");
        let cut_off = ["It said: no endpoints for \"pol….".to_owned(), "It goes on.".to_owned()];
        assert_eq!(told(&cut_off), "It said: no endpoints for \"pol… It goes on.");
    }
}
