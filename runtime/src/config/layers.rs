//! One source of values, and the check of its keys against the known ones.

use std::path::Path;

use ::config::{File, FileFormat, Map, Source, Value, ValueKind};
use serde_json::Value as Json;

use super::{ConfigError, ENV_PREFIX, ENV_RESERVED, ENV_SEPARATOR};

/// At most this many sibling keys are listed in an error.
const HINT_KEYS_MAX: usize = 12;

/// Values of one place: the whole file, one variable, or one flag.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    name: String,
    values: Map<String, Value>,
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ::config::ConfigError> {
        Ok(self.values.clone())
    }
}

impl Layer {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn defaults(known: &Json) -> Result<Self, ConfigError> {
        let name = "the defaults".to_owned();
        match from_json(known, &name).kind {
            ValueKind::Table(values) => Ok(Self { name, values }),
            _ => Err(ConfigError::Defaults("the root is not a struct".to_owned())),
        }
    }

    pub(super) fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::FileUnreadable {
            path: path.to_owned(),
            message: error.to_string(),
        })?;
        let name = format!("file {}", path.display());
        if text.lines().all(is_blank_yaml) {
            return Ok(Self { name, values: Map::new() });
        }
        let values = File::from_str(&text, FileFormat::Yaml).collect().map_err(|error| {
            ConfigError::FileInvalid { path: path.to_owned(), message: error.to_string() }
        })?;
        Ok(Self { name, values })
    }

    pub(super) fn from_environment(variables: &[(String, String)], known: &Json) -> Vec<Self> {
        let mut named: Vec<_> = variables
            .iter()
            .filter(|(name, _)| !ENV_RESERVED.contains(&name.as_str()))
            .filter_map(|(name, value)| Some((name.strip_prefix(ENV_PREFIX)?, value)))
            .collect();
        // The operating system gives no order; errors should not depend on it.
        named.sort();
        named
            .into_iter()
            .map(|(key, value)| {
                let path = key.to_lowercase().replace(ENV_SEPARATOR, ".");
                let name = format!("environment variable {ENV_PREFIX}{key}");
                Self::single(name, &path, value, known)
            })
            .collect()
    }

    pub(super) fn from_overrides(overrides: &[(String, String)], known: &Json) -> Vec<Self> {
        overrides
            .iter()
            .map(|(key, value)| Self::single(format!("flag {key}={value}"), key, value, known))
            .collect()
    }

    /// A layer of one dotted key. Text becomes a list where the default is a list.
    fn single(name: String, path: &str, text: &str, known: &Json) -> Self {
        let segments: Vec<_> = path.split('.').collect();
        let default = segments.iter().try_fold(known, |node, segment| node.get(segment));
        let kind = match default {
            Some(Json::Array(_)) => ValueKind::Array(
                text.split(',')
                    .map(str::trim)
                    .filter(|item| !item.is_empty())
                    .map(|item| Value::new(Some(&name), ValueKind::String(item.to_owned())))
                    .collect(),
            ),
            _ => ValueKind::String(text.to_owned()),
        };
        let mut value = Value::new(Some(&name), kind);
        for segment in segments.iter().skip(1).rev() {
            let table = Map::from([((*segment).to_owned(), value)]);
            value = Value::new(Some(&name), ValueKind::Table(table));
        }
        let values = Map::from([(segments[0].to_owned(), value)]);
        Self { name, values }
    }

    /// Every key must be in the serialized defaults. A null default (an `Option`) and an empty
    /// table (a map filled by the user) say nothing about what may be below them.
    pub(super) fn check_known(&self, known: &Json) -> Result<(), ConfigError> {
        self.check_table(&self.values, known, "")
    }

    fn check_table(&self, table: &Map<String, Value>, known: &Json, path: &str) -> Result<(), ConfigError> {
        let Json::Object(known_keys) = known else { return Ok(()) };
        if known_keys.is_empty() {
            return Ok(());
        }
        let mut keys: Vec<_> = table.keys().collect();
        keys.sort();
        for key in keys {
            let full = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            let Some(below) = known_keys.get(key) else {
                return Err(ConfigError::UnknownKey {
                    key: full,
                    source_name: self.name.clone(),
                    hint: hint(key, known_keys.keys()),
                });
            };
            if let ValueKind::Table(inner) = &table[key].kind {
                self.check_table(inner, below, &full)?;
            }
        }
        Ok(())
    }

    /// Whether this layer gives a value to the dotted key.
    pub(super) fn sets(&self, path: &str) -> bool {
        let mut table = &self.values;
        let mut segments = path.split(['.', '[']).peekable();
        while let Some(segment) = segments.next() {
            match table.get(segment).map(|value| &value.kind) {
                None => return false,
                Some(ValueKind::Table(inner)) if segments.peek().is_some() => table = inner,
                Some(_) => return true,
            }
        }
        true
    }
}

fn is_blank_yaml(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#') || line == "---"
}

/// The nearest known key when it is near, else the list of them.
fn hint<'a>(key: &str, known: impl Iterator<Item = &'a String>) -> String {
    let known: Vec<_> = known.map(String::as_str).collect();
    let nearest = known.iter().map(|name| (distance(key, name), *name)).min();
    match nearest {
        Some((distance, name)) if distance <= 2 => format!("; did you mean `{name}`?"),
        _ if known.len() <= HINT_KEYS_MAX => format!("; known here: {}", known.join(", ")),
        _ => String::new(),
    }
}

/// Levenshtein distance in characters (Wagner and Fischer 1974), for a "did you mean".
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

fn from_json(json: &Json, origin: &String) -> Value {
    let kind = match json {
        Json::Null => ValueKind::Nil,
        Json::Bool(flag) => ValueKind::Boolean(*flag),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => ValueKind::I64(integer),
            (None, Some(integer)) => ValueKind::U64(integer),
            (None, None) => ValueKind::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => ValueKind::String(text.clone()),
        Json::Array(items) => ValueKind::Array(items.iter().map(|item| from_json(item, origin)).collect()),
        Json::Object(fields) => ValueKind::Table(
            fields.iter().map(|(key, value)| (key.clone(), from_json(value, origin))).collect(),
        ),
    };
    Value::new(Some(origin), kind)
}
