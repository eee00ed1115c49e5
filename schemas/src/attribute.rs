//! OpenTelemetry-style attributes.

use rkyv::{Archive, Deserialize, Serialize};
use smol_str::SmolStr;

use crate::wire::Interned;

/// A value of an attribute. Arrays and maps are kept as JSON text.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
pub enum AttributeValue {
    /// True or false.
    Bool(bool),
    /// Whole number.
    Int(i64),
    /// Float.
    Double(f64),
    /// Text.
    Text(#[rkyv(with = Interned)] SmolStr),
}

impl AttributeValue {
    /// The text, when it is text.
    pub fn as_text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// The number, when it is one; text is parsed.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Int(n) => Some(*n as f64),
            Self::Double(n) => Some(*n),
            Self::Bool(b) => Some(f64::from(u8::from(*b))),
            Self::Text(text) => text.parse().ok(),
        }
    }
}

impl std::fmt::Display for AttributeValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bool(v) => write!(f, "{v}"),
            Self::Int(v) => write!(f, "{v}"),
            Self::Double(v) => write!(f, "{v}"),
            Self::Text(v) => f.write_str(v),
        }
    }
}

impl From<&str> for AttributeValue {
    fn from(text: &str) -> Self {
        Self::Text(SmolStr::new(text))
    }
}
impl From<i64> for AttributeValue {
    fn from(n: i64) -> Self {
        Self::Int(n)
    }
}
impl From<f64> for AttributeValue {
    fn from(n: f64) -> Self {
        Self::Double(n)
    }
}

/// A named value.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize, serde::Serialize, serde::Deserialize)]
pub struct Attribute {
    /// Name, after the OpenTelemetry semantic conventions where they have one.
    #[rkyv(with = Interned)]
    pub key: SmolStr,
    /// Value.
    pub value: AttributeValue,
}

impl Attribute {
    /// Shorthand.
    pub fn new(key: &str, value: impl Into<AttributeValue>) -> Self {
        Self { key: SmolStr::new(key), value: value.into() }
    }
}

/// Finds an attribute by name.
pub fn find<'a>(attributes: &'a [Attribute], key: &str) -> Option<&'a AttributeValue> {
    attributes.iter().find(|a| a.key == key).map(|a| &a.value)
}
