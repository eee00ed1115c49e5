//! Which container gets which limit.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::change::{NEW_LIMIT, pairs};

/// A limit that is to be chosen is this many times the one that stands: enough to see whether it was the limit.
const FACTOR: f64 = 2.0;

/// What the command line says of it.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// Which container.
    pub container: Option<String>,
    /// The value for what is to be chosen: a quantity, or `resource=quantity` for some of several limits.
    pub limit: Option<String>,
}

impl Wishes {
    /// The wished quantities by resource, of `limits`: a bare quantity is for the one that is to be chosen, or for the
    /// only one.
    ///
    /// # Errors
    /// When the wish is no list of quantities, names another limit, or could mean several.
    pub fn quantities(&self, limits: &BTreeMap<String, String>) -> anyhow::Result<BTreeMap<String, String>> {
        let Some(text) = &self.limit else { return Ok(BTreeMap::new()) };
        let named = text.contains('=');
        let wished = if named {
            pairs(text).with_context(|| format!("`{text}` is no list of resource=quantity"))?
        } else {
            let open: Vec<&String> =
                limits.iter().filter(|(_, wanted)| *wanted == NEW_LIMIT).map(|(key, _)| key).collect();
            let all: Vec<&String> = limits.keys().collect();
            let (([key], _) | (_, [key])) = (&open[..], &all[..]) else {
                bail!("the action sets {}: say which with --limit {}={text}", keys(limits), all[0]);
            };
            BTreeMap::from([((*key).clone(), text.clone())])
        };
        if let Some(other) = wished.keys().find(|key| !limits.contains_key(*key)) {
            bail!("the action sets no limit of {other}, only of {}", keys(limits));
        }
        Ok(wished)
    }
}

/// Sets limits in the template of a workload. The container is the one that is named; else the only one that has such a
/// limit; else the only one that was killed for want of memory.
pub fn set(
    workload: &mut Value,
    pods: &[Value],
    limits: &BTreeMap<String, String>,
    wishes: &Wishes,
) -> anyhow::Result<()> {
    let wished = wishes.quantities(limits)?;
    let containers = workload.pointer_mut("/spec/template/spec/containers").and_then(Value::as_array_mut);
    let containers = containers.context("the object has no pod template with containers")?;
    let names: Vec<String> = containers
        .iter()
        .filter(|container| limits.keys().all(|key| container["resources"]["limits"][key].is_string()))
        .filter_map(|container| container["name"].as_str().map(str::to_owned))
        .collect();
    let killed: Vec<&String> = names.iter().filter(|name| was_killed(pods, name)).collect();
    let name = match (&wishes.container, &names[..], &killed[..]) {
        (Some(name), ..) => name.clone(),
        (None, [one], _) => one.clone(),
        (None, _, [one]) => (*one).clone(),
        (None, [], _) => bail!("no container has a limit of {}: name one with --container", keys(limits)),
        (None, several, _) => bail!("{} have such a limit: name one with --container", several.join(", ")),
    };
    let container = containers.iter_mut().find(|container| container["name"] == name.as_str());
    let container = container.with_context(|| format!("there is no container {name}"))?;
    for (key, wanted) in limits {
        let standing = container["resources"]["limits"][key].as_str().map(str::to_owned);
        let value = match (wanted == NEW_LIMIT, wished.get(key), standing) {
            (false, None, _) => wanted.clone(),
            (_, Some(limit), _) => limit.clone(),
            (true, None, Some(standing)) => multiplied(&standing)
                .with_context(|| format!("`{standing}` is no quantity: give one with --limit"))?,
            (true, None, None) => bail!("{name} has no limit of {key}: give one with --limit"),
        };
        container["resources"]["limits"][key] = json!(value);
    }
    Ok(())
}

fn keys(limits: &BTreeMap<String, String>) -> String {
    limits.keys().cloned().collect::<Vec<_>>().join(" and ")
}

fn was_killed(pods: &[Value], container: &str) -> bool {
    let statuses = pods.iter().flat_map(|pod| pod["status"]["containerStatuses"].as_array()).flatten();
    let mut of_it = statuses.filter(|status| status["name"] == container);
    of_it.any(|status| {
        ["state", "lastState"].iter().any(|state| status[state]["terminated"]["reason"] == "OOMKilled")
    })
}

/// A quantity, twice as much: `256Mi` is `512Mi`, `1.5` is `3`.
fn multiplied(quantity: &str) -> Option<String> {
    let end = quantity.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(quantity.len());
    let (number, unit) = quantity.split_at(end);
    let number: f64 = number.parse().ok()?;
    let known = ["", "m", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti"].contains(&unit);
    (known && number > 0.0).then(|| format!("{}{unit}", number * FACTOR))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(containers: &[(&str, Option<&str>)]) -> Value {
        let container = |(name, memory): &(&str, Option<&str>)| match memory {
            Some(memory) => json!({"name": name, "resources": {"limits": {"memory": memory}}}),
            None => json!({"name": name}),
        };
        let containers: Vec<Value> = containers.iter().map(container).collect();
        json!({"spec": {"template": {"spec": {"containers": containers}}}})
    }

    fn raised(object: &mut Value, pods: &[Value], wishes: &Wishes) -> Result<(), String> {
        let limits = BTreeMap::from([("memory".to_owned(), NEW_LIMIT.to_owned())]);
        set(object, pods, &limits, wishes).map_err(|error| error.to_string())
    }

    fn memory(object: &Value, at: usize) -> &Value {
        &object["spec"]["template"]["spec"]["containers"][at]["resources"]["limits"]["memory"]
    }

    #[test]
    fn the_limit_is_doubled_or_what_was_asked_for() {
        let mut object = workload(&[("proxy", None), ("app", Some("256Mi"))]);
        raised(&mut object, &[], &Wishes::default()).unwrap();
        assert_eq!(memory(&object, 1), "512Mi");
        let wishes = Wishes { limit: Some("1Gi".to_owned()), ..Wishes::default() };
        raised(&mut object, &[], &wishes).unwrap();
        assert_eq!((memory(&object, 1), memory(&object, 0)), (&json!("1Gi"), &Value::Null));
        for (quantity, expected) in
            [("1.5Gi", Some("3Gi")), ("500m", Some("1000m")), ("many", None), ("0", None)]
        {
            assert_eq!(multiplied(quantity).as_deref(), expected);
        }
    }

    #[test]
    fn a_wished_limit_is_for_one_resource_and_leaves_the_others_alone() {
        let set = |limits: [(&str, &str); 2], wished: &str| -> Result<Value, String> {
            let limits = limits.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
            let mut object = workload(&[("app", Some("256Mi"))]);
            object["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] = json!("1");
            let wishes = Wishes { limit: Some(wished.to_owned()), container: Some("app".to_owned()) };
            super::set(&mut object, &[], &limits, &wishes).map_err(|error| error.to_string())?;
            Ok(object["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"].take())
        };
        let (chosen, both) = (("memory", NEW_LIMIT), [("memory", "512Mi"), ("cpu", "2")]);
        assert_eq!(set([chosen, ("cpu", "2")], "1Gi"), Ok(json!({"memory": "1Gi", "cpu": "2"})));
        assert_eq!(set(both, "cpu=500m"), Ok(json!({"memory": "512Mi", "cpu": "500m"})));
        assert_eq!(set(both, "cpu=3,memory=1Gi"), Ok(json!({"memory": "1Gi", "cpu": "3"})));
        let error = set(both, "1Gi").unwrap_err();
        assert_eq!(error, "the action sets cpu and memory: say which with --limit cpu=1Gi");
        assert!(set([chosen, ("cpu", NEW_LIMIT)], "1Gi").is_err(), "both are to be chosen");
        let error = set(both, "disk=1Gi").unwrap_err();
        assert_eq!(error, "the action sets no limit of disk, only of cpu and memory");
    }

    #[test]
    fn of_several_containers_it_is_the_one_that_was_killed() {
        let two = workload(&[("app", Some("1Gi")), ("proxy", Some("64Mi"))]);
        let mut object = two.clone();
        let error = raised(&mut object, &[], &Wishes::default()).unwrap_err();
        assert_eq!(error, "app, proxy have such a limit: name one with --container");
        let pod = json!({"status": {"containerStatuses": [{"name": "app"},
            {"name": "proxy", "lastState": {"terminated": {"reason": "OOMKilled"}}}]}});
        raised(&mut object, &[pod], &Wishes::default()).unwrap();
        assert_eq!((memory(&object, 0), memory(&object, 1)), (&json!("1Gi"), &json!("128Mi")));
        let wishes = Wishes { container: Some("db".to_owned()), ..Wishes::default() };
        assert_eq!(raised(&mut object, &[], &wishes).unwrap_err(), "there is no container db");
        let error = raised(&mut workload(&[("app", None)]), &[], &Wishes::default()).unwrap_err();
        assert_eq!(error, "no container has a limit of memory: name one with --container");
    }
}
