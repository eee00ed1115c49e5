//! Other names for everything that has one, to show that no verdict rests on a name.
//!
//! The names of services, workloads, pods, namespaces and nodes are collected from a recording and replaced by random words
//! wherever they occur in its values: resource and span attributes, span names, log bodies, messages. A pod keeps the suffix
//! that follows the name of its workload. Names of attributes, metrics and units are vocabulary and stay.

use std::collections::{BTreeMap, BTreeSet};

use aho_corasick::{AhoCorasick, MatchKind};
use anyhow::Context;
use serde_json::Value;

use super::matching::{Place, Wanted, is_instance};

/// Shorter names are parts of too many words to be replaced.
const NAME_CHARS_MIN: usize = 3;
/// Names of at least so many letters are replaced within words, too.
const WITHIN_WORDS_CHARS_MIN: usize = 6;
/// Attributes whose value is a name.
const NAME_KEYS: [&str; 8] = [
    "service.name",
    "service.namespace",
    "service.instance.id",
    "host.name",
    "peer.service",
    "server.address",
    "net.peer.name",
    "container.name",
];
/// Members of which the value is vocabulary or an id, and not text about something.
const KEPT_KEYS: [&str; 17] = [
    "key",
    "unit",
    "traceId",
    "spanId",
    "parentSpanId",
    "schemaUrl",
    "severityText",
    "kind",
    "apiVersion",
    "uid",
    "resourceVersion",
    "reason",
    "type",
    "phase",
    "protocol",
    "operator",
    "effect",
];
const CONSONANTS: &[u8] = b"bdfgklmnprstvz";
const VOWELS: &[u8] = b"aeiou";
/// Syllables of a word.
const SYLLABLES: usize = 4;

/// Names as they are found.
#[derive(Debug, Default)]
pub struct Names(BTreeSet<String>);

impl Names {
    /// Adds the names in a request of a recording.
    pub fn collect(&mut self, request: &Value) {
        match request {
            Value::Array(items) => items.iter().for_each(|item| self.collect(item)),
            Value::Object(members) => {
                self.attribute(members);
                self.object(members);
                members.values().for_each(|value| self.collect(value));
            }
            _ => {}
        }
    }

    fn attribute(&mut self, members: &serde_json::Map<String, Value>) {
        let key = members.get("key").and_then(Value::as_str).unwrap_or_default();
        let value = members.get("value").and_then(|value| value.get("stringValue")).and_then(Value::as_str);
        let of_kubernetes = key.starts_with("k8s.") && key.ends_with(".name");
        if let Some(value) = value.filter(|_| of_kubernetes || NAME_KEYS.contains(&key)) {
            self.add(value);
        }
    }

    fn object(&mut self, members: &serde_json::Map<String, Value>) {
        for reference in ["metadata", "involvedObject"].iter().filter_map(|key| members.get(*key)) {
            for key in ["name", "namespace"] {
                self.add(reference.get(key).and_then(Value::as_str).unwrap_or_default());
            }
        }
    }

    fn add(&mut self, name: &str) {
        let letters = name.chars().filter(char::is_ascii_alphabetic).count();
        let is_of_kubernetes = name == "default" || name.starts_with("kube-");
        if letters >= NAME_CHARS_MIN && !is_of_kubernetes {
            self.0.insert(name.to_owned());
        }
    }

    /// A renaming of all of them.
    pub fn renamed(&self, seed: u64) -> anyhow::Result<Renaming> {
        let has_base = |name: &String| self.0.iter().any(|base| is_instance(name, base));
        let bases: Vec<&String> = self.0.iter().filter(|name| !has_base(name)).collect();
        let mut words = Words { state: seed, used: self.0.iter().map(|name| name.to_lowercase()).collect() };
        let mut by_name: BTreeMap<String, String> = BTreeMap::new();
        for base in bases {
            by_name.entry(base.to_lowercase()).or_insert_with(|| words.next());
        }
        let found = AhoCorasick::builder()
            .ascii_case_insensitive(true)
            .match_kind(MatchKind::LeftmostLongest)
            .build(by_name.keys())
            .context("too many names to rename")?;
        Ok(Renaming { found, words: by_name.into_values().collect() })
    }
}

/// Random words that nothing is called.
struct Words {
    state: u64,
    used: BTreeSet<String>,
}

impl Words {
    fn next(&mut self) -> String {
        loop {
            let word: String = (0..SYLLABLES)
                .flat_map(|_| [self.letter(CONSONANTS), self.letter(VOWELS)])
                .map(char::from)
                .collect();
            if self.used.insert(word.clone()) {
                return word;
            }
        }
    }

    fn letter(&mut self, of: &[u8]) -> u8 {
        // SplitMix64 (Steele, Lea, Flood 2014).
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        of[(z % of.len() as u64) as usize]
    }
}

/// Replaces names by words, the same ones everywhere.
#[derive(Debug, Clone)]
pub struct Renaming {
    found: AhoCorasick,
    words: Vec<String>,
}

impl Renaming {
    /// Number of names that are replaced.
    #[cfg(test)]
    fn names(&self) -> usize {
        self.words.len()
    }

    /// A request with its names replaced.
    pub fn request(&self, request: Value) -> Value {
        self.value(request, false)
    }

    fn value(&self, value: Value, of_metrics: bool) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(&text)),
            Value::Array(items) => items.into_iter().map(|item| self.value(item, of_metrics)).collect(),
            Value::Object(members) => {
                let members = members.into_iter().map(|(key, value)| {
                    let kept = KEPT_KEYS.contains(&key.as_str())
                        || key.ends_with("UnixNano")
                        || (of_metrics && matches!(key.as_str(), "name" | "description"));
                    let value = if kept { value } else { self.value(value, key == "metrics") };
                    (key, value)
                });
                Value::Object(members.collect())
            }
            other => other,
        }
    }

    /// A text with its names replaced.
    pub fn text(&self, text: &str) -> String {
        let mut renamed = String::with_capacity(text.len());
        let mut copied = 0;
        for found in self.found.find_iter(text) {
            let old = &text[found.range()];
            if old.len() < WITHIN_WORDS_CHARS_MIN && !stands_alone(text, found.start(), found.end()) {
                continue;
            }
            renamed.push_str(&text[copied..found.start()]);
            let word = &self.words[found.pattern().as_usize()];
            let (first, rest) = word.split_at(1);
            let is_upper = old.starts_with(|c: char| c.is_ascii_uppercase());
            renamed.push_str(&if is_upper { first.to_ascii_uppercase() } else { first.to_owned() });
            renamed.push_str(rest);
            copied = found.end();
        }
        renamed.push_str(&text[copied..]);
        renamed
    }

    /// What a label wants, under its new name.
    pub fn wanted(&self, wanted: &Wanted) -> Wanted {
        match wanted {
            Wanted::Service(name) => Wanted::Service(self.text(name)),
            Wanted::Objects(places) => {
                Wanted::Objects(places.iter().map(|place| self.place(place)).collect())
            }
        }
    }

    fn place(&self, place: &Place) -> Place {
        Place {
            kind: place.kind.clone(),
            namespace: self.text(&place.namespace),
            name: self.text(&place.name),
        }
    }
}

fn stands_alone(text: &str, from: usize, to: usize) -> bool {
    let is_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    !is_word(text[..from].chars().next_back()) && !is_word(text[to..].chars().next())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded() -> Value {
        serde_json::json!({"resourceSpans": [{"resource": {"attributes": [
            {"key": "service.name", "value": {"stringValue": "cartservice"}},
            {"key": "k8s.namespace.name", "value": {"stringValue": "api"}},
            {"key": "k8s.pod.name", "value": {"stringValue": "cartservice-5d8f-abc"}}]},
            "scopeSpans": [{"spans": [{"traceId": "aa", "name": "shop.CartService/Get",
                "attributes": [{"key": "peer.service", "value": {"stringValue": "api-store"}}]}]}]}]})
    }

    #[test]
    fn a_name_is_replaced_wherever_it_stands_and_the_same_way() {
        let mut names = Names::default();
        names.collect(&recorded());
        let renaming = names.renamed(7).unwrap();
        assert_eq!(renaming.names(), 3, "the pod is named after its workload");
        let service = renaming.text("cartservice");
        assert!(!service.contains("cart") && service.len() == 2 * SYLLABLES);
        let text = renaming.request(recorded()).to_string();
        assert!(!text.to_lowercase().contains("cartservice"), "{text}");
        assert!(text.contains(&format!("\"{service}-5d8f-abc\"")), "{text}");
        let capital = format!("shop.{}{}/Get", service[..1].to_uppercase(), &service[1..]);
        assert!(text.contains(&capital) && text.contains("\"service.name\""), "{text}");
        let wanted = renaming.wanted(&Wanted::Service("cartservice".into()));
        assert_eq!(wanted, Wanted::Service(service));
    }

    #[test]
    fn short_names_are_words_of_their_own() {
        let mut names = Names::default();
        names.collect(&recorded());
        let renaming = names.renamed(7).unwrap();
        assert_eq!(renaming.text("rapid"), "rapid");
        assert!(!renaming.text("get /api/x").contains("api"));
        assert_ne!(
            renaming.text("api-store"),
            format!("{}-store", renaming.text("api")),
            "a name of its own"
        );
    }

    #[test]
    fn another_seed_gives_other_words() {
        let mut names = Names::default();
        names.collect(&recorded());
        assert_ne!(
            names.renamed(1).unwrap().text("cartservice"),
            names.renamed(2).unwrap().text("cartservice")
        );
    }

    #[test]
    fn names_of_metrics_are_vocabulary() {
        let mut names = Names::default();
        names.collect(&recorded());
        let request = serde_json::json!({"metrics": [{"name": "cartservice.duration", "unit": "s", "gauge": {"dataPoints": [
            {"attributes": [{"key": "peer", "value": {"stringValue": "cartservice"}}]}]}}]});
        let text = names.renamed(1).unwrap().request(request).to_string();
        assert!(text.contains("cartservice.duration") && !text.contains("\"cartservice\""), "{text}");
    }
}
