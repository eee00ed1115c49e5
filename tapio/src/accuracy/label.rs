//! The right answer to a recorded case, of the two shapes that label files have (`docs/accuracy.md`).

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, bail};
use serde::Deserialize;

use super::matching::Wanted;

/// Time before the fault's start from which a finding counts, in seconds: starts are labelled late by up to 90 s.
const BEFORE_S: f64 = 120.0;
/// Time after the fault's end until which a finding counts, in seconds.
const AFTER_S: f64 = 180.0;

/// What is to be found.
#[derive(Debug, Clone, PartialEq)]
pub struct Root {
    /// Where.
    pub entity: Wanted,
    /// Categories of the cause that are right.
    pub categories: BTreeSet<String>,
}

/// What the case should end with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A cause is to be named.
    Active,
    /// Nothing is to be blamed with confidence: healthy, recovered, or not provable.
    Negative,
}

/// The answer to one case.
#[derive(Debug, Clone, PartialEq)]
pub struct Label {
    /// Name of the case: that of its file.
    pub case: String,
    /// System the case is from.
    pub system: String,
    /// Kind of fault, for the table.
    pub kind: String,
    /// All causes that are there at once.
    pub roots: Vec<Root>,
    /// Cause or no cause.
    pub verdict: Verdict,
    /// Seconds of Unix time within which findings count; `None`: the whole recording.
    pub window: Option<(f64, f64)>,
    /// Unix time at which the fault began, when the label says so.
    pub start: Option<f64>,
    /// The labelled start is not known to be late or early.
    pub onset_is_exact: bool,
}

#[derive(Deserialize)]
struct Raw {
    system: Option<String>,
    root_cause_service: Option<String>,
    #[serde(default)]
    fault_kind: String,
    fault_type: Option<String>,
    fault_start_unix: Option<f64>,
    fault_end_unix: Option<f64>,
    onset_quality: Option<String>,
    #[serde(default)]
    root_causes: Vec<RawRoot>,
    verdict: Option<String>,
    first_bad_at_unix_nano: Option<String>,
}

#[derive(Deserialize)]
struct RawRoot {
    #[serde(flatten)]
    place: RawPlace,
    cause: String,
    #[serde(default)]
    accept_categories: Vec<String>,
    #[serde(default)]
    also_accept: Vec<RawPlace>,
}

#[derive(Deserialize)]
struct RawPlace {
    kind: String,
    #[serde(default)]
    namespace: String,
    name: String,
}

impl RawPlace {
    fn named(self) -> super::matching::Place {
        super::matching::Place { kind: self.kind.to_lowercase(), namespace: self.namespace, name: self.name }
    }
}

impl Label {
    /// Reads a label file; `system` is used when it names none.
    pub fn read(path: &Path, system: &str) -> anyhow::Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let case = path.file_stem().unwrap_or_default().to_string_lossy();
        Self::parse(&text, &case, system).with_context(|| format!("{} is no label", path.display()))
    }

    fn parse(text: &[u8], case: &str, system: &str) -> anyhow::Result<Self> {
        let raw: Raw = serde_json::from_slice(text)?;
        let system = raw.system.clone().unwrap_or_else(|| system.to_owned());
        if raw.root_cause_service.is_some() {
            of_service(raw, case, system)
        } else {
            of_objects(raw, case, system)
        }
    }

    /// True when a finding made at this Unix time counts.
    pub fn counts(&self, at: f64) -> bool {
        self.window.is_none_or(|(from, to)| from <= at && at <= to)
    }

    /// The answer to the same case so many seconds later.
    pub fn shift(&mut self, seconds: f64) {
        self.window = self.window.map(|(from, to)| (from + seconds, to + seconds));
        self.start = self.start.map(|start| start + seconds);
    }

    /// True when nothing is to be blamed.
    pub fn is_negative(&self) -> bool {
        self.verdict == Verdict::Negative
    }

    /// What the answer is about, for leaving one service out.
    pub fn group(&self) -> String {
        self.roots.first().map_or_else(String::new, |root| format!("{}/{}", self.system, root.entity.name()))
    }
}

fn of_service(raw: Raw, case: &str, system: String) -> anyhow::Result<Label> {
    let (Some(start), Some(end)) = (raw.fault_start_unix, raw.fault_end_unix) else {
        bail!("fault_start_unix or fault_end_unix is missing");
    };
    if raw.fault_kind.is_empty() {
        bail!("fault_kind is missing");
    }
    let entity = Wanted::Service(raw.root_cause_service.unwrap_or_default());
    let categories = BTreeSet::from([raw.fault_kind.clone()]);
    Ok(Label {
        case: case.to_owned(),
        system,
        kind: raw.fault_type.unwrap_or(raw.fault_kind),
        roots: vec![Root { entity, categories }],
        verdict: Verdict::Active,
        window: Some((start - BEFORE_S, end + AFTER_S)),
        start: Some(start),
        onset_is_exact: !raw.onset_quality.unwrap_or_default().starts_with("uncertain"),
    })
}

fn of_objects(raw: Raw, case: &str, system: String) -> anyhow::Result<Label> {
    let verdict = match raw.verdict.as_deref().unwrap_or("active") {
        "active" => Verdict::Active,
        "healthy" | "recovered" | "not_provable" => Verdict::Negative,
        other => bail!("verdict `{other}` is none of active, healthy, recovered, not_provable"),
    };
    if verdict == Verdict::Active && raw.root_causes.is_empty() {
        bail!("neither root_cause_service nor root_causes say what is to be found");
    }
    let kind = raw.root_causes.first().map_or_else(|| "none".to_owned(), |root| root.cause.clone());
    let start = raw.first_bad_at_unix_nano.as_deref().map(str::parse::<f64>).transpose()?;
    Ok(Label {
        case: case.to_owned(),
        system,
        kind,
        roots: raw.root_causes.into_iter().map(root_of).collect(),
        verdict,
        window: None,
        start: start.map(|nanos| nanos / 1e9),
        onset_is_exact: true,
    })
}

fn root_of(raw: RawRoot) -> Root {
    let of_cause = || vec![category(&raw.cause).to_owned()];
    let categories = if raw.accept_categories.is_empty() { of_cause() } else { raw.accept_categories };
    let places = std::iter::once(raw.place).chain(raw.also_accept).map(RawPlace::named).collect();
    Root { entity: Wanted::Objects(places), categories: categories.into_iter().collect() }
}

/// `<category>` of `<category>.<name>`.
pub fn category(cause: &str) -> &str {
    cause.split('.').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_of_a_service_has_a_window_around_the_fault() {
        let text = br#"{"system":"shop","root_cause_service":"cart","fault_kind":"cpu","fault_type":"cpu_contention",
            "fault_start_unix":1000,"fault_end_unix":1180,"onset_quality":"uncertain_90s"}"#;
        let label = Label::parse(text, "c-1", "other").unwrap();
        assert_eq!((label.system.as_str(), label.kind.as_str()), ("shop", "cpu_contention"));
        assert_eq!(label.window, Some((880.0, 1360.0)));
        assert!(label.counts(880.0) && label.counts(1360.0) && !label.counts(1360.5));
        assert!(!label.is_negative() && !label.onset_is_exact);
        assert_eq!(label.roots[0].categories, BTreeSet::from(["cpu".to_owned()]));
    }

    #[test]
    fn a_label_of_objects_takes_the_category_of_the_cause_unless_others_are_accepted() {
        let text = br#"{"verdict":"active","first_bad_at_unix_nano":"1500000000","root_causes":[
            {"kind":"ResourceQuota","namespace":"a","name":"q","cause":"quota.exceeded","also_accept":[{"kind":"Deployment","namespace":"a","name":"d"}]},
            {"kind":"Node","name":"n","cause":"node.down","accept_categories":["node","runtime"]}]}"#;
        let label = Label::parse(text, "k", "k8s").unwrap();
        assert_eq!(label.roots.len(), 2);
        assert_eq!(label.roots[0].categories, BTreeSet::from(["quota".to_owned()]));
        assert_eq!(label.roots[1].categories.len(), 2);
        assert_eq!((label.start, label.window), (Some(1.5), None));
    }

    #[test]
    fn a_label_that_says_nothing_is_refused() {
        assert!(Label::parse(b"{}", "k", "k8s").is_err());
        assert!(Label::parse(br#"{"verdict":"maybe"}"#, "k", "k8s").is_err());
        let healthy = Label::parse(br#"{"verdict":"healthy","root_causes":[]}"#, "k", "k8s").unwrap();
        assert!(healthy.is_negative());
    }
}
