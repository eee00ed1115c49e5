//! OTLP attribute values as ours.

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use smol_str::{SmolStr, ToSmolStr};
use tapio_schemas::attribute::{Attribute, AttributeValue};

use super::{ATTRIBUTE_BYTES_MAX, ATTRIBUTES_MAX};
use crate::convert::{Seed, cut};

/// Depth to which nested values are followed; deeper ones become `…`.
const DEPTH_MAX: usize = 16;

/// The attributes, bounded; adds what was left out or cut to `trimmed`.
pub fn convert(attributes: Vec<KeyValue>, trimmed: &mut u64) -> Vec<Attribute> {
    let over = attributes.len().saturating_sub(ATTRIBUTES_MAX);
    *trimmed += over as u64;
    attributes
        .into_iter()
        .take(ATTRIBUTES_MAX)
        .filter_map(|kv| {
            let value = bounded(kv.value?.value?, trimmed);
            Some(Attribute { key: SmolStr::new(kv.key), value })
        })
        .collect()
}

fn bounded(value: Value, trimmed: &mut u64) -> AttributeValue {
    let text = match value {
        Value::BoolValue(v) => return AttributeValue::Bool(v),
        Value::IntValue(v) => return AttributeValue::Int(v),
        // JSON has no word for these; as text they survive.
        Value::DoubleValue(v) if !v.is_finite() => return AttributeValue::Text(v.to_smolstr()),
        Value::DoubleValue(v) => return AttributeValue::Double(v),
        Value::StringValue(text) => text,
        other => json(&other, 0).to_string(),
    };
    if text.len() > ATTRIBUTE_BYTES_MAX {
        *trimmed += 1;
    }
    AttributeValue::Text(cut(&text, ATTRIBUTE_BYTES_MAX))
}

/// Any value as text: strings as they are, the rest as JSON.
pub fn text_of(value: &AnyValue) -> String {
    match &value.value {
        None => String::new(),
        Some(Value::StringValue(text)) => text.clone(),
        Some(other) => json(other, 0).to_string(),
    }
}

fn json(value: &Value, depth: usize) -> serde_json::Value {
    if depth > DEPTH_MAX {
        return "…".into();
    }
    let inner = |v: Option<&AnyValue>| match v.and_then(|v| v.value.as_ref()) {
        Some(value) => json(value, depth + 1),
        None => serde_json::Value::Null,
    };
    match value {
        Value::StringValue(text) => text.as_str().into(),
        Value::BoolValue(v) => (*v).into(),
        Value::IntValue(v) => (*v).into(),
        Value::DoubleValue(v) => (*v).into(),
        Value::BytesValue(bytes) => format!("{} bytes", bytes.len()).into(),
        Value::ArrayValue(array) => array.values.iter().map(|v| inner(Some(v))).collect(),
        Value::KvlistValue(list) => list
            .values
            .iter()
            .map(|kv| (kv.key.clone(), inner(kv.value.as_ref())))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        // Of profiles: an index into a table that these signals do not have.
        Value::StringValueStrindex(_) => serde_json::Value::Null,
    }
}

/// The text of an attribute, empty when it is missing or not text.
pub fn text<'a>(attributes: &'a [KeyValue], key: &str) -> &'a str {
    attributes
        .iter()
        .find(|kv| kv.key == key)
        .and_then(|kv| match &kv.value.as_ref()?.value {
            Some(Value::StringValue(text)) => Some(text.as_str()),
            _ => None,
        })
        .unwrap_or_default()
}

/// The first of some attributes that is text and not empty.
pub fn first_text<'a>(attributes: &'a [KeyValue], keys: &[&str]) -> &'a str {
    keys.iter().map(|key| text(attributes, key)).find(|text| !text.is_empty()).unwrap_or_default()
}

/// The first of some attributes that is a whole number, or text that is one.
pub fn first_int(attributes: &[KeyValue], keys: &[&str]) -> Option<i64> {
    keys.iter().find_map(|key| {
        let value = attributes.iter().find(|kv| kv.key == *key)?.value.as_ref()?.value.as_ref()?;
        match value {
            Value::IntValue(n) => Some(*n),
            Value::StringValue(text) => text.parse().ok(),
            Value::DoubleValue(n) if n.fract() == 0.0 => Some(*n as i64),
            _ => None,
        }
    })
}

/// Whether the attribute is there with any value.
pub fn has(attributes: &[KeyValue], key: &str) -> bool {
    attributes.iter().any(|kv| kv.key == key)
}

/// Hash of a set of attributes, whatever their order.
pub fn identity(attributes: &[KeyValue]) -> u128 {
    let mut sorted: Vec<_> = attributes.iter().collect();
    sorted.sort_by(|a, b| a.key.cmp(&b.key));
    let seed = sorted.iter().fold(Seed::new("attributes"), |seed, kv| {
        let value = kv.value.as_ref().map(text_of).unwrap_or_default();
        seed.text(&kv.key).text(&value)
    });
    seed.hash()
}
