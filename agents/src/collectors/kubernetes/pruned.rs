//! An object out of JSON without what nobody asks: it is never held, not even for a moment.
//!
//! Left out are the fields of managers (which parts of the object they are in is kept), the copy that `kubectl apply` makes
//! of the whole object, schemas of custom resources and the images of a node. Of ConfigMaps and Secrets each value becomes
//! its hash while it is read. Texts beyond [`TEXT_BYTES_MAX`] become their beginning and a hash, so that a change of them is
//! still seen.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::sync::OnceLock;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Bytes kept of any text; what is told of a text is shorter still.
pub const TEXT_BYTES_MAX: usize = 4096;
/// The annotation in which `kubectl apply` keeps the whole object, with the values of a Secret.
const APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Where in the object a value stands, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The object itself.
    Object,
    Metadata,
    Annotations,
    /// What a ConfigMap or Secret holds.
    Data,
    Status,
    /// The fields of a manager.
    Managed,
    Other,
}

impl Place {
    /// Where the value of a key stands; none for what is left out.
    fn below(self, key: &str) -> Option<Self> {
        match (self, key) {
            // Before all others: what is in there is named as its owner likes.
            (Self::Data, _) => Some(Self::Data),
            (_, "fieldsV1") => Some(Self::Managed),
            (_, "openAPIV3Schema") | (Self::Annotations, APPLIED) | (Self::Status, "images") => None,
            (Self::Object, "items") => Some(Self::Object),
            (Self::Object, "metadata") => Some(Self::Metadata),
            (Self::Object, "status") => Some(Self::Status),
            (Self::Object, "data" | "binaryData" | "stringData") => Some(Self::Data),
            (Self::Metadata, "annotations") => Some(Self::Annotations),
            _ => Some(Self::Other),
        }
    }
}

/// Reads one object.
#[derive(Debug, Clone, Copy)]
pub struct Pruned(Place);

impl Pruned {
    /// Of a whole object of the API.
    pub const OBJECT: Self = Self(Place::Object);
}

impl<'de> DeserializeSeed<'de> for Pruned {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Pruned {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::String(match self.0 {
            Place::Data => hidden(text),
            _ if text.len() > TEXT_BYTES_MAX => shortened(text),
            _ => text.to_owned(),
        }))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Self(self.0))? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = fields.next_key::<String>()? {
            match self.0.below(&key) {
                Some(_) if self.0 == Place::Managed => {
                    fields.next_value::<IgnoredAny>()?;
                    map.insert(key, Value::Null);
                }
                Some(place) => {
                    let value = fields.next_value_seed(Self(place))?;
                    map.insert(key, value);
                }
                None => {
                    fields.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Value::Object(map))
    }
}

/// The hash of a value that is nobody's business.
fn hidden(text: &str) -> String {
    // Of this process: a short password must not be found by hashing the likely ones.
    static SALT: OnceLock<u64> = OnceLock::new();
    let salt = SALT.get_or_init(|| RandomState::new().build_hasher().finish());
    format!("{:032x}", xxhash_rust::xxh3::xxh3_128_with_seed(text.as_bytes(), *salt))
}

fn shortened(text: &str) -> String {
    let end = (0..=TEXT_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}…{:032x}", &text[..end], xxhash_rust::xxh3::xxh3_128(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(object: &Value) -> Value {
        let text = object.to_string();
        Pruned::OBJECT.deserialize(&mut serde_json::Deserializer::from_str(&text)).unwrap()
    }

    #[test]
    fn what_nobody_asks_is_left_out_and_the_rest_is_as_it_was() {
        let object = json!({"kind": "Node", "metadata": {"name": "n", "annotations": {APPLIED: "{}", "a": "b"},
            "managedFields": [{"manager": "helm", "time": "2030-01-01T00:00:00Z", "fieldsV1": {"f:spec": {}}}]},
            "spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": {"type": "object"}}}], "n": [1, -2, 0.5, null, true]},
            "status": {"images": [{"names": ["x"]}], "phase": "up"}});
        let expected = json!({"kind": "Node", "metadata": {"name": "n", "annotations": {"a": "b"},
            "managedFields": [{"manager": "helm", "time": "2030-01-01T00:00:00Z", "fieldsV1": {"f:spec": null}}]},
            "spec": {"versions": [{"name": "v1", "schema": {}}], "n": [1, -2, 0.5, null, true]}, "status": {"phase": "up"}});
        assert_eq!(read(&object), expected);
    }

    #[test]
    fn values_are_hashed_and_differ_only_when_they_differ() {
        let secret = |value: &str| {
            read(&json!({"kind": "Secret", "data": {"password": value, "same": "aHVudGVyMg=="}}))
        };
        let (one, other) = (secret("b25l"), secret("dHdv"));
        assert!(!one.to_string().contains("b25l") && !one.to_string().contains("aHVudGVyMg"), "{one}");
        assert_ne!(one["data"]["password"], other["data"]["password"]);
        assert_eq!(one["data"]["same"], other["data"]["same"]);
        assert_eq!(one["data"]["password"].as_str().unwrap().len(), 32);
    }

    #[test]
    fn a_value_is_hashed_whatever_its_key_is_called() {
        for key in ["fieldsV1", "images", "openAPIV3Schema", "data", "metadata", APPLIED] {
            for place in ["data", "binaryData", "stringData"] {
                let held = read(&json!({"kind": "Secret", place: {key: "aHVudGVyMg=="}}));
                let value = held[place][key].as_str().unwrap_or_default();
                assert!(value.len() == 32 && !value.contains("aHVudGVyMg"), "{held}");
            }
        }
    }

    #[test]
    fn a_long_text_is_cut_and_a_change_at_its_end_is_seen() {
        let long = |end: &str| read(&json!({"message": format!("{}{end}", "ä".repeat(TEXT_BYTES_MAX))}));
        let text = long("a")["message"].as_str().unwrap().to_owned();
        assert!(text.len() < TEXT_BYTES_MAX + 64 && text.starts_with("ää"), "{}", text.len());
        assert_ne!(text, long("b")["message"].as_str().unwrap());
    }
}
