//! The published JSON of a finding, key by key: what others read is law, whatever the structs are called.

use std::collections::BTreeSet;

use serde_json::Value;
use tapio_schemas::UnixNanos;

/// What a value must be.
pub enum Shape {
    /// Text that is not empty.
    Text,
    /// Text that may be empty.
    AnyText,
    /// 1, 2, …
    Count,
    /// A number from 0 to 1.
    Score,
    Truth,
    /// RFC 3339 in UTC with nine digits: `2026-01-01T00:00:00.000000000Z`.
    Time,
    /// This prefix and 32 hexadecimal digits, in one of these forms.
    Id(&'static [&'static str]),
    /// One of these words.
    Word(&'static [&'static str]),
    /// `<category>.<name>` with a category of the closed list.
    Cause,
    Null(&'static Shape),
    List(&'static Shape),
    Interval,
    /// These keys and no others; a `?` at the end: may be absent.
    Object(&'static [(&'static str, Shape)]),
}

use Shape::{AnyText, Cause, Count, Id, Interval, List, Null, Object, Score, Text, Time, Truth, Word};

/// Of causes; `tapio` is for what is wrong with Tapio itself.
const CATEGORIES: &str = "cpu memory storage network dns code config image scheduling admission quota credentials \
    certificate dependency slo node runtime controlplane rollout probe tapio";

const ENTITY: Shape = Object(&[("kind", Text), ("namespace?", Text), ("name", Text), ("node?", Text)]);
const TEXTS: Shape = List(&Text);
const EVIDENCE: Shape = List(&Id(&["evt-", "sig-"]));

const ROOT_CAUSE: Shape = Object(&[("entity", ENTITY), ("cause", Cause), ("evidence", EVIDENCE)]);
const HYPOTHESIS: Shape = Object(&[
    ("entity", ENTITY),
    ("cause", Cause),
    ("probability", Score),
    ("explains?", TEXTS),
    ("missing", TEXTS),
    ("refuted_by?", TEXTS),
]);
const LINK: Shape = Object(&[
    ("at", Time),
    ("entity", ENTITY),
    ("signal", Text),
    ("says", Text),
    ("evidence", List(&Id(&["evt-"]))),
]);
const WORDS: Shape =
    Object(&[("namespace", Text), ("pod", Text), ("container", Text), ("at", Time), ("lines", TEXTS)]);
const IMPACT: Shape = Object(&[
    ("business_impact", Score),
    ("customer_facing", Truth),
    ("slo_impact", Truth),
    ("cascade_risk", Score),
    ("requests_affected", Score),
    ("callers", TEXTS),
]);
const PREDICTION: Shape = Object(&[
    ("scenario", Text),
    ("probability", Score),
    ("at", Time),
    ("interval", Interval),
    ("outcome?", Word(&["pending", "hit", "early", "miss", "not_due"])),
]);
/// Of what is foretold elsewhere than where the cause is.
const ELSEWHERE: Shape = Object(&[
    ("entity", ENTITY),
    ("scenario", Text),
    ("probability", Score),
    ("at", Time),
    ("interval", Interval),
    ("outcome?", Word(&["pending", "hit", "early", "miss", "not_due"])),
]);
const ACTION: Shape = Object(&[
    ("title", Text),
    ("risk", Word(&["low", "medium", "high"])),
    ("command", Text),
    ("undo?", Text),
]);
const GROUP: Shape = Object(&[("id", Id(&["grp-"])), ("type", AnyText), ("intent", AnyText)]);
const FRESHNESS: Shape = Object(&[("watermark", Time), ("gaps", TEXTS)]);

/// A finding, schema `tapio.finding/v1`.
pub const FINDING: Shape = Object(&[
    ("schema", Word(&["tapio.finding/v1"])),
    ("id", Id(&["fnd-"])),
    ("revision", Count),
    ("status", Word(&["active", "recovered", "healthy", "not_provable", "superseded"])),
    ("superseded_by?", Id(&["fnd-"])),
    ("cluster", Text),
    ("severity", Word(&["info", "warning", "error", "critical"])),
    ("title", Text),
    ("story", Text),
    ("opened_at", Time),
    ("first_bad_at", Time),
    ("updated_at", Time),
    ("emitted_at", Time),
    ("confidence", Score),
    ("root_cause", Null(&ROOT_CAUSE)),
    ("hypotheses", List(&HYPOTHESIS)),
    ("chain", List(&LINK)),
    ("said?", List(&WORDS)),
    ("impact", IMPACT),
    ("prediction?", PREDICTION),
    ("predictions?", List(&ELSEWHERE)),
    ("actions", List(&ACTION)),
    ("semantic_group", GROUP),
    ("freshness", FRESHNESS),
]);

/// What was found in documents.
#[derive(Default)]
pub struct Seen {
    /// Each key that was there, with its path: `chain[].at`.
    pub keys: BTreeSet<String>,
    /// What is wrong, with its path.
    pub faults: Vec<String>,
}

impl Seen {
    /// Looks at a document.
    pub fn look(&mut self, shape: &Shape, path: &str, value: &Value) {
        let good = match shape {
            Text => value.as_str().is_some_and(|text| !text.is_empty()),
            AnyText => value.is_string(),
            Count => value.as_u64().is_some_and(|count| count > 0),
            Score => value.as_f64().is_some_and(|score| (0.0..=1.0).contains(&score)),
            Truth => value.is_boolean(),
            Time => value.as_str().is_some_and(is_time),
            Id(prefixes) => value.as_str().is_some_and(|id| prefixes.iter().any(|prefix| is_id(id, prefix))),
            Word(words) => value.as_str().is_some_and(|word| words.contains(&word)),
            Cause => value.as_str().is_some_and(is_cause),
            Null(_) if value.is_null() => true,
            Null(shape) => return self.look(shape, path, value),
            Interval => match value.as_array().map(Vec::as_slice) {
                Some([from, to]) => is_interval(from, to),
                _ => false,
            },
            List(shape) => {
                let path = format!("{path}[]");
                value.as_array().map(|list| list.iter().for_each(|v| self.look(shape, &path, v))).is_some()
            }
            Object(keys) => return self.look_at_keys(keys, path, value),
        };
        if !good {
            self.faults.push(format!("{path} is {value}"));
        }
    }

    fn look_at_keys(&mut self, keys: &[(&str, Shape)], path: &str, value: &Value) {
        let Some(object) = value.as_object() else {
            return self.faults.push(format!("{path} is {value}, not an object"));
        };
        let plain = |key: &str| key.trim_end_matches('?').to_owned();
        for key in object.keys().filter(|key| keys.iter().all(|(known, _)| plain(known) != **key)) {
            self.faults.push(format!("{path}.{key} is not of the schema"));
        }
        for (key, shape) in keys {
            let path = format!("{path}.{}", plain(key));
            match object.get(&plain(key)) {
                Some(value) => {
                    self.look(shape, &path, value);
                    self.keys.insert(path);
                }
                None if key.ends_with('?') => {}
                None => self.faults.push(format!("{path} is missing")),
            }
        }
    }
}

/// Every key of a shape, with its path.
pub fn keys_of(shape: &Shape, path: &str, into: &mut BTreeSet<String>) {
    match shape {
        Null(shape) => keys_of(shape, path, into),
        List(shape) => keys_of(shape, &format!("{path}[]"), into),
        Object(keys) => {
            for (key, shape) in *keys {
                let path = format!("{path}.{}", key.trim_end_matches('?'));
                keys_of(shape, &path, into);
                into.insert(path);
            }
        }
        _ => {}
    }
}

fn is_time(text: &str) -> bool {
    const FORM: &str = "0000-00-00T00:00:00.000000000Z";
    let fits = |(form, c): (char, char)| if form == '0' { c.is_ascii_digit() } else { c == form };
    text.len() == FORM.len() && FORM.chars().zip(text.chars()).all(fits) && text.parse::<UnixNanos>().is_ok()
}

fn is_interval(from: &Value, to: &Value) -> bool {
    // Of one length and form, so they compare as text.
    matches!((from.as_str(), to.as_str()), (Some(from), Some(to)) if is_time(from) && is_time(to) && from <= to)
}

fn is_id(text: &str, prefix: &str) -> bool {
    let digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    text.strip_prefix(prefix).is_some_and(|digits| digits.len() == 32 && digits.chars().all(digit))
}

fn is_cause(text: &str) -> bool {
    text.split_once('.').is_some_and(|(category, name)| {
        CATEGORIES.split_whitespace().any(|known| known == category)
            && !name.is_empty()
            && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    })
}

/// One with every key there is.
fn full() -> Value {
    let at = "2026-01-01T00:00:00.000000000Z";
    let entity = serde_json::json!({"kind": "Deployment", "namespace": "shop", "name": "api", "node": "n1"});
    let id = |prefix: &str| format!("{prefix}{:032x}", 7);
    serde_json::json!({
        "schema": "tapio.finding/v1", "id": id("fnd-"), "revision": 3, "status": "active", "superseded_by": id("fnd-"),
        "cluster": "prod", "severity": "critical", "title": "t", "story": "s",
        "opened_at": at, "first_bad_at": at, "updated_at": at, "emitted_at": at, "confidence": 0.93,
        "root_cause": {"entity": entity, "cause": "memory.leak", "evidence": [id("evt-")]},
        "hypotheses": [{"entity": entity, "cause": "network.delay", "probability": 0.04, "explains": ["a"],
                        "missing": ["b"], "refuted_by": ["c"]}],
        "chain": [{"at": at, "entity": entity, "signal": "memory.growth", "says": "it grows", "evidence": [id("evt-")]}],
        "said": [{"namespace": "shop", "pod": "api-1", "container": "api", "at": at, "lines": ["panic"]}],
        "impact": {"business_impact": 0.7, "customer_facing": true, "slo_impact": false, "cascade_risk": 0.4,
                   "requests_affected": 0.12, "callers": ["web"]},
        "prediction": {"scenario": "oom_kill", "probability": 0.9, "at": at, "interval": [at, at], "outcome": "hit"},
        "predictions": [{"entity": entity, "scenario": "cascade_call", "probability": 0.5, "at": at,
                         "interval": [at, at], "outcome": "early"}],
        "actions": [{"title": "t", "risk": "low", "command": "kubectl", "undo": "kubectl"}],
        "semantic_group": {"id": id("grp-"), "type": "memory_pressure_cascade", "intent": "i"},
        "freshness": {"watermark": at, "gaps": ["a hole"]},
    })
}

/// The value at a path as [`Seen::keys`] has them, and its parent.
fn with(
    document: &Value,
    path: &str,
    change: impl FnOnce(&mut serde_json::Map<String, Value>, &str),
) -> Value {
    let mut changed = document.clone();
    let (parents, key) = path.rsplit_once('.').expect("a path begins with a dot");
    let mut place = &mut changed;
    for part in parents.split('.').filter(|part| !part.is_empty()) {
        place = &mut place[part.trim_end_matches("[]")];
        if part.ends_with("[]") {
            place = &mut place[0];
        }
    }
    change(place.as_object_mut().expect("an object"), key);
    changed
}

fn faults(document: &Value) -> Vec<String> {
    let mut seen = Seen::default();
    seen.look(&FINDING, "", document);
    seen.faults
}

#[test]
fn a_key_that_is_missing_or_new_or_of_another_type_is_a_fault() {
    let full = full();
    assert_eq!(faults(&full), Vec::<String>::new());
    let mut keys = BTreeSet::new();
    keys_of(&FINDING, "", &mut keys);
    assert!(keys.len() > 60, "{keys:?}");
    let may_be_absent = [
        "superseded_by",
        "namespace",
        "node",
        "explains",
        "refuted_by",
        "prediction",
        "predictions",
        "said",
        "outcome",
        "undo",
    ];
    for path in &keys {
        let without = with(&full, path, |object, key| drop(object.remove(key).expect("it is there")));
        // A cgroup has no namespace, a pod has one.
        let optional =
            may_be_absent.iter().any(|key| path.ends_with(&format!(".{key}"))) && path != ".said[].namespace";
        assert_eq!(faults(&without).is_empty(), optional, "without {path}: {:?}", faults(&without));
        for wrong in [serde_json::json!(-1), serde_json::json!({"a": 1})] {
            let other = with(&full, path, |object, key| drop(object.insert(key.to_owned(), wrong)));
            assert!(!faults(&other).is_empty(), "{other} is taken");
        }
        let more = with(&full, path, |object, key| drop(object.insert(format!("{key}_"), Value::Null)));
        assert!(!faults(&more).is_empty(), "{more} is taken");
    }
    let times: Vec<&String> =
        keys.iter().filter(|path| path.ends_with("_at") || path.ends_with(".at")).collect();
    assert_eq!(times.len(), 8, "{times:?}");
    for path in times {
        for wrong in [
            "2026-01-01T00:00:00Z",
            "2026-01-01 00:00:00.000000000Z",
            "2026-13-01T00:00:00.000000000Z",
            "1767225600",
        ] {
            let other = with(&full, path, |object, key| drop(object.insert(key.to_owned(), wrong.into())));
            assert!(!faults(&other).is_empty(), "{path}: {wrong} is taken");
        }
    }
}
