//! From a change to the request that makes it: the object is read, what it should be is worked out, and only the places
//! that differ are sent, for the version that was read.

use anyhow::{Context, anyhow, bail};
use serde_json::{Map, Value, json};
use tapio_agents::collectors::kubernetes::objects::{Objects, Place, Run};

use super::change::{Change, NEW_LIMIT, What};
use super::limits::{self, Wishes};
use super::patch::{self, Step};

/// Where a Deployment and its ReplicaSets say which revision they are.
const REVISION: &str = "deployment.kubernetes.io/revision";
/// What kubectl writes to restart the pods of a template.
const RESTARTED: &str = "kubectl.kubernetes.io/restartedAt";

/// A request that has not been made.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Of what.
    pub place: Place,
    /// What it does.
    pub request: Request,
}

/// What is asked of the server.
#[derive(Debug, Clone)]
pub enum Request {
    /// Some places of an object.
    Patch {
        /// The object as it was read.
        before: Value,
        /// Which places.
        steps: Vec<Step>,
    },
    /// A new object.
    Create(Value),
    /// It goes.
    Delete {
        /// The object as it was read.
        before: Value,
    },
}

/// How to go back, once it is done.
#[derive(Debug, Clone)]
pub enum Undo {
    /// The places as they were, unless somebody has changed them since.
    Patch(Value),
    /// What was made goes, by its uid.
    Delete(String),
    /// What was deleted is made again.
    Create(Value),
    /// There is no way back.
    Never,
}

impl Plan {
    /// Works it out.
    ///
    /// # Errors
    /// When the object cannot be read, there is nothing to go back to, or a value has to be chosen first.
    pub async fn of(objects: &Objects, change: &Change, wishes: &Wishes, now: &str) -> anyhow::Result<Self> {
        let place = change.place.clone();
        if change.what == What::Create {
            let metadata = json!({"name": place.name, "namespace": place.namespace});
            let resource = place.resource;
            let object =
                json!({"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata});
            return Ok(Self { place, request: Request::Create(object) });
        }
        let before = objects.get(&place).await?;
        if change.what == What::Delete {
            return Ok(Self { place, request: Request::Delete { before } });
        }
        let mut wanted = before.clone();
        match &change.what {
            What::RollBack => wanted["spec"]["template"] = template_before(objects, &place, &before).await?,
            What::Restart => {
                let annotations = &mut wanted["spec"]["template"]["metadata"]["annotations"];
                patch::merge(annotations, &json!({RESTARTED: now}));
            }
            What::Pause(paused) => wanted["spec"]["paused"] = json!(paused),
            What::Scale(replicas) => wanted["spec"]["replicas"] = json!(replicas),
            What::Limits { container, limits } => {
                let pods = pods_of(objects, &place, &before).await?;
                let wishes = Wishes {
                    container: wishes.container.clone().or_else(|| container.clone()),
                    ..wishes.clone()
                };
                limits::set(&mut wanted, &pods, limits, &wishes)?;
            }
            What::Select(labels) => wanted["spec"]["selector"] = json!(labels),
            What::Cordon(closed) => {
                wanted["spec"]["unschedulable"] = if *closed { json!(true) } else { Value::Null };
                if !closed && let Some(spec) = wanted["spec"].as_object_mut() {
                    spec.remove("unschedulable");
                }
            }
            What::Merge(patch) => patch::merge(&mut wanted, patch),
            What::Create | What::Delete => unreachable!("returned above"),
        }
        let steps = patch::difference(&before, &wanted);
        if steps.is_empty() {
            bail!("{place} is already as the action wants it: nothing to change");
        }
        Ok(Self { place, request: Request::Patch { before, steps } })
    }

    /// The verb that has to be allowed.
    pub fn verb(&self) -> &'static str {
        match self.request {
            Request::Patch { .. } => "patch",
            Request::Create(_) => "create",
            Request::Delete { .. } => "delete",
        }
    }

    /// The object as it was read; nothing of a new one.
    pub fn before(&self) -> Option<&Value> {
        match &self.request {
            Request::Patch { before, .. } | Request::Delete { before } => Some(before),
            Request::Create(_) => None,
        }
    }

    /// Asks the server; gives the object as it is then, or as it would be.
    ///
    /// # Errors
    /// As the server says.
    pub async fn send(
        &self,
        objects: &Objects,
        run: Run,
    ) -> Result<Value, tapio_agents::collectors::kubernetes::objects::ObjectError> {
        match &self.request {
            Request::Patch { before, steps } => {
                objects.patch(&self.place, &patch::forward(steps, version(before)), run).await
            }
            Request::Create(object) => objects.create(&self.place, object, run).await,
            Request::Delete { before } => {
                objects.delete(&self.place, before["metadata"]["uid"].as_str().unwrap_or_default(), run).await
            }
        }
    }

    /// The way back from `after`.
    pub fn undo(&self, after: &Value) -> Undo {
        match &self.request {
            Request::Patch { steps, .. } if self.is_final(steps) => Undo::Never,
            Request::Patch { steps, .. } => Undo::Patch(patch::backward(steps, after)),
            Request::Create(_) => {
                Undo::Delete(after["metadata"]["uid"].as_str().unwrap_or_default().to_owned())
            }
            // A pod is its owner's to make again.
            Request::Delete { before } if before["kind"] == "Pod" => Undo::Never,
            Request::Delete { before } => Undo::Create(bare(before)),
        }
    }

    /// Who waits for a finalizer goes at once when it is taken away.
    fn is_final(&self, steps: &[Step]) -> bool {
        steps.iter().any(|step| step.pointer.starts_with("/metadata/finalizers"))
    }
}

impl Undo {
    /// Goes back; gives the object as it is then.
    ///
    /// # Errors
    /// As the server says; a conflict when somebody else has changed the same.
    pub async fn send(&self, objects: &Objects, place: &Place) -> anyhow::Result<Value> {
        Ok(match self {
            Self::Patch(patch) => objects.patch(place, patch, Run::Real).await?,
            Self::Delete(uid) => objects.delete(place, uid, Run::Real).await?,
            Self::Create(object) => objects.create(place, object, Run::Real).await?,
            Self::Never => bail!("what was done to {place} cannot be undone"),
        })
    }

    /// Whether there is a way back.
    pub fn exists(&self) -> bool {
        !matches!(self, Self::Never)
    }
}

/// The version of an object.
pub fn version(object: &Value) -> &str {
    object["metadata"]["resourceVersion"].as_str().unwrap_or_default()
}

/// An object without what the server gave it.
fn bare(object: &Value) -> Value {
    let mut bare = object.clone();
    bare.as_object_mut().map(|object| object.remove("status"));
    if let Some(metadata) = bare["metadata"].as_object_mut() {
        metadata.retain(|key, _| ["name", "namespace", "labels", "annotations"].contains(&key.as_str()));
    }
    bare
}

/// The pod template of the revision before the one that stands.
async fn template_before(objects: &Objects, place: &Place, now: &Value) -> anyhow::Result<Value> {
    let none = || anyhow!("{place} has no earlier revision to go back to");
    let of =
        |kind: &str| Place::of(kind, &place.namespace, &place.name).with_context(|| format!("no {kind}"));
    let is_owned = |object: &Value| {
        let owners = object["metadata"]["ownerReferences"].as_array();
        owners.is_some_and(|owners| owners.iter().any(|owner| owner["uid"] == now["metadata"]["uid"]))
    };
    let mut template = match place.resource.kind {
        "Deployment" => {
            let number = |object: &Value| -> u64 {
                let text = object["metadata"]["annotations"][REVISION].as_str();
                text.and_then(|text| text.parse().ok()).unwrap_or(0)
            };
            let sets = objects.list(&of("ReplicaSet")?).await?;
            let current = number(now);
            let earlier = sets.iter().filter(|set| is_owned(set) && (1..current).contains(&number(set)));
            earlier.max_by_key(|set| number(set)).ok_or_else(none)?["spec"]["template"].clone()
        }
        "StatefulSet" | "DaemonSet" => {
            let number = |object: &&Value| object["revision"].as_u64().unwrap_or(0);
            let all = objects.list(&of("ControllerRevision")?).await?;
            let mut owned: Vec<&Value> = all.iter().filter(|revision| is_owned(revision)).collect();
            owned.sort_by_key(number);
            let before = owned.iter().rev().nth(1).ok_or_else(none)?;
            before["data"]["spec"]["template"].clone()
        }
        kind => bail!("a {kind} has no revisions to go back to"),
    };
    if let Some(template) = template.as_object_mut() {
        template.remove("$patch");
    }
    if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
        labels.remove("pod-template-hash");
    }
    if !template["spec"].is_object() {
        return Err(none());
    }
    Ok(template)
}

/// The pods that the workload selects.
async fn pods_of(objects: &Objects, place: &Place, workload: &Value) -> anyhow::Result<Vec<Value>> {
    let nobody = Map::new();
    let wanted = workload["spec"]["selector"]["matchLabels"].as_object().unwrap_or(&nobody);
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let pods = Place::of("Pod", &place.namespace, &place.name).context("no pods")?;
    let mut all = objects.list(&pods).await?;
    all.retain(|pod| wanted.iter().all(|(key, value)| &pod["metadata"]["labels"][key] == value));
    Ok(all)
}

/// Whether a value of the change is to be chosen and is not wished for.
pub fn is_open(what: &What, wishes: &Wishes) -> bool {
    let What::Limits { limits, .. } = what else { return false };
    let wished = wishes.quantities(limits).unwrap_or_default();
    limits.iter().any(|(key, value)| value == NEW_LIMIT && !wished.contains_key(key))
}
