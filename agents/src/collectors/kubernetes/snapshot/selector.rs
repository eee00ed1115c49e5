//! Label selectors, as the command line of Kubernetes takes them.

use serde_json::Value;

/// What labels must be like; all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector(Vec<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    Exists(String),
    Absent(String),
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
}

/// A selector that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no label selector: write `app=shop`, `app!=shop`, `app in (a,b)`, `app` or `!app`, with commas between"
)]
pub struct BadSelector(String);

impl Selector {
    /// Reads `a=b,c!=d,e in (f,g),h notin (i),j,!k`.
    ///
    /// # Errors
    /// [`BadSelector`], with the part that is wrong.
    pub fn parse(text: &str) -> Result<Self, BadSelector> {
        let parts = parts(text).into_iter().map(|part| requirement(part.trim()));
        let requirements = parts.collect::<Result<Vec<_>, _>>()?;
        if requirements.is_empty() { Err(BadSelector(text.to_owned())) } else { Ok(Self(requirements)) }
    }

    /// Whether these labels (an object of texts, or nothing) are meant.
    pub fn matches(&self, labels: &Value) -> bool {
        let label = |key: &str| labels.get(key).and_then(Value::as_str);
        self.0.iter().all(|requirement| match requirement {
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::Absent(key) => label(key).is_none(),
            Requirement::In(key, values) => label(key).is_some_and(|v| values.iter().any(|want| want == v)),
            Requirement::NotIn(key, values) => label(key).is_none_or(|v| values.iter().all(|want| want != v)),
        })
    }
}

/// Commas within brackets do not part.
fn parts(text: &str) -> Vec<&str> {
    let (mut depth, mut from, mut parts) = (0_i32, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[from..]);
    parts
}

fn requirement(part: &str) -> Result<Requirement, BadSelector> {
    let bad = || BadSelector(part.to_owned());
    let one = |text: &str| vec![text.trim().to_owned()];
    let found = if let Some((key, value)) = part.split_once("!=") {
        Requirement::NotIn(key_of(key, part)?, one(value))
    } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        Requirement::In(key_of(key, part)?, one(value))
    } else if let Some((key, values)) = part.split_once(" notin ") {
        Requirement::NotIn(key_of(key, part)?, set(values).ok_or_else(bad)?)
    } else if let Some((key, values)) = part.split_once(" in ") {
        Requirement::In(key_of(key, part)?, set(values).ok_or_else(bad)?)
    } else if let Some(key) = part.strip_prefix('!') {
        Requirement::Absent(key_of(key, part)?)
    } else {
        Requirement::Exists(key_of(part, part)?)
    };
    Ok(found)
}

fn key_of(key: &str, part: &str) -> Result<String, BadSelector> {
    let key = key.trim();
    let is_of_key = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    if key.is_empty() || !key.chars().all(is_of_key) {
        Err(BadSelector(part.to_owned()))
    } else {
        Ok(key.to_owned())
    }
}

fn set(text: &str) -> Option<Vec<String>> {
    let inner = text.trim().strip_prefix('(')?.strip_suffix(')')?;
    Some(inner.split(',').map(|value| value.trim().to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn all_forms_are_read() {
        let labels = json!({"app": "shop", "tier": "web", "example.com/team": "a"});
        let cases = [
            ("app=shop", true),
            ("app==shop,tier=web", true),
            ("app=shop,tier=db", false),
            ("app!=shop", false),
            ("none!=x", true),
            ("app in (a, shop)", true),
            ("app in (a,b),tier=web", false),
            ("app notin (a,b)", true),
            ("example.com/team", true),
            ("!example.com/team", false),
            ("!gone", true),
        ];
        for (text, expected) in cases {
            assert_eq!(Selector::parse(text).unwrap().matches(&labels), expected, "{text}");
        }
        assert!(!Selector::parse("app").unwrap().matches(&Value::Null));
        for text in ["", "=x", "app in a,b", "a b", "app=shop,"] {
            assert!(Selector::parse(text).is_err(), "{text}");
        }
    }
}
