//! Lists and single objects out of JSON, one object at a time: a large list is never held as a whole.

use std::fmt;
use std::io::Read;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::collectors::kubernetes::pruned::Pruned;

/// What is said of a list beside its items.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListHead {
    /// Where the next page begins; empty at the end.
    pub continue_token: String,
    /// The version of the list; empty when it says none.
    pub resource_version: String,
}

/// Kind and version of items that do not say so themselves.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fallback<'a> {
    /// Kind; empty when it is not known.
    pub kind: &'a str,
    /// Version.
    pub api_version: &'a str,
}

/// Reads all documents of `text` (lists, lists of lists, single objects) and hands out each object.
///
/// # Errors
/// When it is not JSON, or is cut off.
pub fn slice(
    text: &[u8],
    fallback: Fallback<'_>,
    each: &mut dyn FnMut(Value),
) -> serde_json::Result<ListHead> {
    all(&mut serde_json::Deserializer::from_slice(text), fallback, each)
}

/// As `slice`, of what is too large to be held.
///
/// # Errors
/// When it cannot be read, is not JSON, or is cut off.
pub fn reader(
    source: impl Read,
    fallback: Fallback<'_>,
    each: &mut dyn FnMut(Value),
) -> serde_json::Result<ListHead> {
    all(&mut serde_json::Deserializer::from_reader(source), fallback, each)
}

fn all<'de, R: serde_json::de::Read<'de>>(
    from: &mut serde_json::Deserializer<R>,
    fallback: Fallback<'_>,
    each: &mut dyn FnMut(Value),
) -> serde_json::Result<ListHead> {
    let mut head = ListHead::default();
    loop {
        let mut begun = false;
        let document = Document { fallback, each: &mut *each, begun: &mut begun };
        match document.deserialize(&mut *from) {
            Ok(found) => head = found,
            // Between two documents is where a file may end.
            Err(error) if error.is_eof() && !begun => return Ok(head),
            Err(error) => return Err(error),
        }
    }
}

struct Document<'a, 'f> {
    fallback: Fallback<'f>,
    each: &'a mut dyn FnMut(Value),
    begun: &'a mut bool,
}

impl<'de> DeserializeSeed<'de> for Document<'_, '_> {
    type Value = ListHead;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<ListHead, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Document<'_, '_> {
    type Value = ListHead;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or a list of objects of the Kubernetes API")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ListHead, A::Error> {
        *self.begun = true;
        let (mut kind, mut api_version) = (String::new(), String::new());
        let mut rest = serde_json::Map::new();
        let mut head: Option<ListHead> = None;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "items" => {
                    let of_list = kind.strip_suffix("List").unwrap_or_default();
                    let own = Fallback { kind: of_list, api_version: &api_version };
                    let fallback = if of_list.is_empty() || of_list.starts_with("Partial") {
                        self.fallback
                    } else {
                        own
                    };
                    map.next_value_seed(Items { fallback, each: &mut *self.each })?;
                    head.get_or_insert_default();
                }
                "kind" => kind = map.next_value()?,
                "apiVersion" => api_version = map.next_value()?,
                _ => {
                    rest.insert(key, map.next_value()?);
                }
            }
        }
        if let Some(mut head) = head {
            head.continue_token = of_metadata(&rest, "continue");
            head.resource_version = of_metadata(&rest, "resourceVersion");
            return Ok(head);
        }
        if rest.is_empty() && kind.is_empty() {
            return Err(A::Error::custom(
                "an empty object, expected a list of objects of the Kubernetes API",
            ));
        }
        rest.insert("kind".to_owned(), Value::from(kind));
        rest.insert("apiVersion".to_owned(), Value::from(api_version));
        hand_out(Value::Object(rest), self.fallback, self.each);
        Ok(ListHead::default())
    }
}

fn of_metadata(list: &serde_json::Map<String, Value>, key: &str) -> String {
    let text = list.get("metadata").and_then(|metadata| metadata[key].as_str());
    text.unwrap_or_default().to_owned()
}

struct Items<'a, 'f> {
    fallback: Fallback<'f>,
    each: &'a mut dyn FnMut(Value),
}

impl<'de> DeserializeSeed<'de> for Items<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Items<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the items of a list")
    }

    /// An empty list may be written as nothing.
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some(item) = items.next_element_seed(Pruned::OBJECT)? {
            hand_out(item, self.fallback, self.each);
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Err(A::Error::custom("`items` is no list"))
    }
}

/// A list within a list is opened; an item without a kind gets that of its list.
fn hand_out(mut object: Value, fallback: Fallback<'_>, each: &mut dyn FnMut(Value)) {
    if let Some(Value::Array(items)) = object.get_mut("items").map(Value::take) {
        return items.into_iter().for_each(|item| hand_out(item, fallback, each));
    }
    let kind = object["kind"].as_str().unwrap_or_default();
    let is_unsaid = kind.is_empty() || kind.starts_with("PartialObjectMetadata");
    if is_unsaid && !fallback.kind.is_empty() && object.is_object() {
        object["kind"] = Value::from(fallback.kind);
        object["apiVersion"] = Value::from(fallback.api_version);
    }
    each(object);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str, kind: &str) -> (Vec<String>, serde_json::Result<ListHead>) {
        let mut kinds = Vec::new();
        let fallback = Fallback { kind, api_version: "v1" };
        let mut each = |object: Value| {
            kinds.push(format!("{} {}", object["kind"].as_str().unwrap(), object["metadata"]["name"]));
        };
        let head = slice(text.as_bytes(), fallback, &mut each);
        let by_reader = reader(text.as_bytes(), fallback, &mut |_| {});
        assert_eq!(head.is_ok(), by_reader.is_ok());
        (kinds, head)
    }

    #[test]
    fn lists_objects_and_several_of_them_are_read() {
        let list = r#"{"kind":"PodList","apiVersion":"v1","metadata":{"continue":"next"},"items":[{"metadata":{"name":"a"}}]}"#;
        let (found, head) = kinds(list, "");
        assert_eq!((found, head.unwrap().continue_token), (vec!["Pod \"a\"".to_owned()], "next".to_owned()));
        let mixed = r#"{"apiVersion":"v1","items":[{"kind":"Node","metadata":{"name":"n"}},{"kind":"List","items":[
            {"kind":"Pod","metadata":{"name":"b"}}]}],"kind":"List"} {"kind":"Service","metadata":{"name":"s"}}"#;
        assert_eq!(kinds(mixed, "").0, ["Node \"n\"", "Pod \"b\"", "Service \"s\""]);
        let late = r#"{"items":[{"metadata":{"name":"a"}}],"kind":"PodList"}"#;
        assert_eq!(kinds(late, "Pod").0, ["Pod \"a\""]);
        let partial = r#"{"kind":"PartialObjectMetadataList","items":[{"kind":"PartialObjectMetadata","metadata":{"name":"c"}}]}"#;
        assert_eq!(kinds(partial, "ConfigMap").0, ["ConfigMap \"c\""]);
        assert!(kinds(r#"{"kind":"PodList","items":null}"#, "").1.is_ok());
        assert!(kinds("", "").1.is_ok());
    }

    #[test]
    fn what_is_cut_off_or_no_list_is_an_error() {
        for text in [
            "{\"kind\":\"PodList\",\"items\":[{\"metadata\":{\"name\":\"a\"}}",
            "hello",
            "{}",
            "[]",
            r#"{"items":{}}"#,
        ] {
            assert!(kinds(text, "Pod").1.is_err(), "{text}");
        }
    }
}
