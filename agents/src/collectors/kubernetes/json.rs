//! Reading JSON of the API without a type per version.

use serde_json::Value;
use smol_str::SmolStr;
use tapio_schemas::ids::UnixNanos;

use crate::convert::cut;

/// Bytes kept of any text of an object.
pub const TEXT_BYTES_MAX: usize = 1024;

/// Text at a JSON pointer; empty when missing.
pub fn text(value: &Value, pointer: &str) -> SmolStr {
    cut(str_at(value, pointer), TEXT_BYTES_MAX)
}

/// Text at a JSON pointer; empty when missing.
pub fn str_at<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Pairs kept of a map of texts.
const PAIRS_MAX: usize = 64;

/// A map of texts, by key.
pub type Pairs = Vec<(SmolStr, SmolStr)>;

/// The map of texts at a JSON pointer, by key; empty when missing.
pub fn pairs(value: &Value, pointer: &str) -> Pairs {
    let map = value.pointer(pointer).and_then(Value::as_object);
    let texts = map
        .into_iter()
        .flatten()
        .map(|(key, value)| (SmolStr::new(key), cut(value.as_str().unwrap_or_default(), TEXT_BYTES_MAX)));
    let mut pairs: Pairs = texts.take(PAIRS_MAX).collect();
    pairs.sort();
    pairs
}

/// True when `labels` have all pairs of `selector`, which has at least one.
pub fn selects(selector: &Pairs, labels: &Pairs) -> bool {
    !selector.is_empty() && selector.iter().all(|pair| labels.contains(pair))
}

/// Whole number at a JSON pointer; zero when missing.
pub fn int(value: &Value, pointer: &str) -> i64 {
    value.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

/// List at a JSON pointer; empty when missing.
pub fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// RFC 3339 time at a JSON pointer.
pub fn time(value: &Value, pointer: &str) -> Option<UnixNanos> {
    str_at(value, pointer).parse().ok().filter(|at: &UnixNanos| at.0 != 0)
}
