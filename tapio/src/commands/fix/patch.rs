//! The difference of two objects as a JSON patch (RFC 6902), and as people read it.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

/// Lines of a difference that are shown.
const LINES_MAX: usize = 40;
/// Letters of a value that are shown.
const VALUE_CHARS_MAX: usize = 120;
/// What a server sets by itself.
const OF_SERVER: [&str; 4] =
    ["/metadata/managedFields", "/metadata/resourceVersion", "/metadata/generation", "/status"];

/// One place that differs.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Where, as a JSON pointer.
    pub pointer: String,
    /// What was there.
    pub old: Option<Value>,
    /// What is to be there.
    pub new: Option<Value>,
}

/// Where `new` differs from `old`, apart from what a server sets by itself. Lists of the same length are compared item
/// by item, others as a whole.
pub fn difference(old: &Value, new: &Value) -> Vec<Step> {
    let mut steps = Vec::new();
    walk(String::new(), old, new, &mut steps);
    steps
}

fn walk(pointer: String, old: &Value, new: &Value, steps: &mut Vec<Step>) {
    if OF_SERVER.contains(&pointer.as_str()) || old == new {
        return;
    }
    match (old, new) {
        (Value::Object(before), Value::Object(after)) => {
            let added = after.keys().filter(|key| !before.contains_key(*key));
            for key in before.keys().chain(added) {
                let pointer = format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1"));
                one(pointer, before.get(key), after.get(key), steps);
            }
        }
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            for (at, (old, new)) in before.iter().zip(after).enumerate() {
                walk(format!("{pointer}/{at}"), old, new, steps);
            }
        }
        _ => steps.push(Step { pointer, old: Some(old.clone()), new: Some(new.clone()) }),
    }
}

fn one(pointer: String, old: Option<&Value>, new: Option<&Value>, steps: &mut Vec<Step>) {
    match (old, new) {
        (Some(old), Some(new)) => walk(pointer, old, new, steps),
        _ if OF_SERVER.contains(&pointer.as_str()) => {}
        (old, new) => steps.push(Step { pointer, old: old.cloned(), new: new.cloned() }),
    }
}

/// The patch that makes these steps, of the object at this version and no other.
pub fn forward(steps: &[Step], version: &str) -> Value {
    let lock = json!({"op": "replace", "path": "/metadata/resourceVersion", "value": version});
    std::iter::once(lock)
        .chain(steps.iter().map(|step| operation(&step.pointer, &step.old, &step.new)))
        .collect()
}

/// The patch that goes back, of an object that was `after` these steps: it does nothing when one of these places was
/// changed by somebody else.
pub fn backward(steps: &[Step], after: &Value) -> Value {
    let mut operations = Vec::new();
    for step in steps.iter().rev() {
        // As the server has written it: a quantity may be spelled another way there.
        let stands = after.pointer(&step.pointer).cloned();
        if let Some(stands) = &stands {
            operations.push(json!({"op": "test", "path": step.pointer, "value": stands}));
        }
        if stands.is_some() || step.old.is_some() {
            operations.push(operation(&step.pointer, &stands, &step.old));
        }
    }
    Value::Array(operations)
}

fn operation(pointer: &str, old: &Option<Value>, new: &Option<Value>) -> Value {
    match (old, new) {
        (_, None) => json!({"op": "remove", "path": pointer}),
        (None, Some(new)) => json!({"op": "add", "path": pointer, "value": new}),
        (Some(_), Some(new)) => json!({"op": "replace", "path": pointer, "value": new}),
    }
}

/// A merge patch (RFC 7386).
pub fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = Value::Object(Map::new());
    }
    let Some(into) = into.as_object_mut() else { return };
    for (key, value) in patch {
        if value.is_null() {
            into.remove(key);
        } else {
            merge(into.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// A line a place: `spec.template.spec.containers[app].resources.limits.memory: "256Mi" → "512Mi"`.
pub fn shown(old: &Value, new: &Value) -> String {
    let steps = difference(old, new);
    let mut out = String::new();
    for step in steps.iter().take(LINES_MAX) {
        let path = path(&step.pointer, if step.old.is_some() { old } else { new });
        let text = |value: &Option<Value>| value.as_ref().map_or_else(|| "nothing".to_owned(), clipped);
        let _ = writeln!(out, "  {path}: {} → {}", text(&step.old), text(&step.new));
    }
    if steps.len() > LINES_MAX {
        let _ = writeln!(out, "  and {} more places", steps.len() - LINES_MAX);
    }
    out
}

fn path(pointer: &str, object: &Value) -> String {
    let (mut out, mut at) = (String::new(), String::new());
    for key in pointer.split('/').skip(1) {
        let of_list = object.pointer(&at).is_some_and(Value::is_array);
        at = format!("{at}/{key}");
        let key = key.replace("~1", "/").replace("~0", "~");
        if of_list {
            let name = object.pointer(&format!("{at}/name")).and_then(Value::as_str).unwrap_or(&key);
            let _ = write!(out, "[{name}]");
        } else {
            let dot = if out.is_empty() { "" } else { "." };
            let _ = write!(out, "{dot}{key}");
        }
    }
    out
}

fn clipped(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(VALUE_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(memory: &str) -> Value {
        json!({"metadata": {"resourceVersion": "7", "generation": 2, "managedFields": [1]}, "status": {"a": 1},
            "spec": {"containers": [{"name": "app", "resources": {"limits": {"memory": memory}}}]}})
    }

    #[test]
    fn a_difference_names_the_place_and_goes_both_ways() {
        let (old, mut new) = (pod("256Mi"), pod("0.5Gi"));
        new["metadata"] = json!({"resourceVersion": "8", "labels": {"a/b": "c"}});
        let steps = difference(&old, &new);
        let shown = shown(&old, &new);
        assert!(
            shown.contains(r#"  spec.containers[app].resources.limits.memory: "256Mi" → "0.5Gi""#),
            "{shown}"
        );
        assert!(shown.contains(r#"metadata.labels: nothing → {"a/b":"c"}"#), "{shown}");
        let forward = forward(&steps, "7");
        assert_eq!(forward[0], json!({"op": "replace", "path": "/metadata/resourceVersion", "value": "7"}));
        assert_eq!(forward.as_array().unwrap().len(), 3, "{forward}");

        // The server spells the quantity its own way, and that is what is tested on the way back.
        new["spec"]["containers"][0]["resources"]["limits"]["memory"] = json!("512Mi");
        let back = backward(&steps, &new);
        let memory = "/spec/containers/0/resources/limits/memory";
        let operations = back.as_array().unwrap();
        assert!(operations.contains(&json!({"op": "test", "path": memory, "value": "512Mi"})), "{back}");
        assert!(operations.contains(&json!({"op": "replace", "path": memory, "value": "256Mi"})), "{back}");
        assert!(operations.contains(&json!({"op": "remove", "path": "/metadata/labels"})), "{back}");
    }

    #[test]
    fn lists_of_another_length_are_replaced_and_keys_are_escaped() {
        let steps = difference(&json!({"a/b": [1], "c": 1}), &json!({"a/b": [1, 2]}));
        let pointers: Vec<&str> = steps.iter().map(|step| step.pointer.as_str()).collect();
        assert_eq!(pointers, ["/a~1b", "/c"]);
        assert_eq!(operation("/c", &steps[1].old, &steps[1].new), json!({"op": "remove", "path": "/c"}));
    }

    #[test]
    fn merging_removes_what_is_null() {
        let mut object = json!({"metadata": {"name": "a", "finalizers": ["x"]}});
        merge(&mut object, &json!({"metadata": {"finalizers": null, "labels": {"a": "b"}}}));
        assert_eq!(object, json!({"metadata": {"name": "a", "labels": {"a": "b"}}}));
    }
}
