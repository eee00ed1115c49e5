//! Readings and kept samples as events.

use std::sync::Arc;

use tapio_schemas::attribute::Attribute;
use tapio_schemas::entity::{EntityRef, kinds};
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::kind::{EventKind, EventSeverity, Source};
use tapio_schemas::payload::{MetricData, MetricKind, Payload};

use super::config::TargetConfig;
use super::exposition::Sample;
use super::roles::{About, Reading};
use crate::convert::{Seed, cut};

/// Bytes of the value of a label.
const LABEL_BYTES_MAX: usize = 256;
/// Labels that are kept of a sample.
const LABELS_KEPT_MAX: usize = 24;
/// Ends of names of what only grows.
const GROWING: [&str; 4] = ["_total", "_sum", "_count", "_bucket"];

/// Of what a target speaks, as entities.
#[derive(Debug, Clone)]
pub struct Entities {
    cluster: String,
    machine: Arc<EntityRef>,
    named: Arc<EntityRef>,
    target: String,
}

impl Entities {
    /// Of a target; `node` is the agent's own machine.
    ///
    /// # Errors
    /// In words, when `entity` is not `namespace/Kind/name`.
    pub fn new(cluster: &str, node: &str, config: &TargetConfig, target: &str) -> Result<Self, String> {
        let node = if config.node.is_empty() { node } else { &config.node };
        let machine = EntityRef { cluster: cluster.into(), node: node.into(), ..EntityRef::default() };
        let machine = Arc::new(machine.sealed());
        let named = match &config.entity[..] {
            "" => Arc::clone(&machine),
            text => Arc::new(named(cluster, text)?.sealed()),
        };
        Ok(Self { cluster: cluster.to_owned(), machine, named, target: target.to_owned() })
    }

    fn of(&self, about: About) -> Arc<EntityRef> {
        let cluster = self.cluster.as_str().into();
        let entity = match about {
            About::Machine => return Arc::clone(&self.machine),
            About::Component(name) => EntityRef {
                cluster,
                object_kind: "Component".into(),
                object: name.into(),
                ..EntityRef::default()
            },
            // The name under which every cluster knows its name service, whatever runs it.
            About::Dns => EntityRef {
                cluster,
                namespace: "kube-system".into(),
                service: "kube-dns".into(),
                ..EntityRef::default()
            },
        };
        Arc::new(entity.sealed())
    }

    /// A reading.
    pub fn reading(&self, reading: &Reading, at: UnixNanos) -> UnifiedEvent {
        let mut attributes = vec![self.address()];
        if !reading.which.is_empty() {
            attributes.push(Attribute::new("which", cut(&reading.which, LABEL_BYTES_MAX).as_str()));
        }
        let data = MetricData {
            name: reading.metric.into(),
            unit: reading.unit.into(),
            kind: MetricKind::Gauge,
            value: reading.value,
            attributes,
            ..MetricData::default()
        };
        self.event(self.of(reading.about), data, at)
    }

    /// Which replica it was tells series of one component apart.
    fn address(&self) -> Attribute {
        Attribute::new("server.address", cut(&self.target, LABEL_BYTES_MAX).as_str())
    }

    /// A sample as it is.
    pub fn kept(&self, sample: &Sample<'_>, at: UnixNanos) -> Option<UnifiedEvent> {
        let grows = GROWING.iter().any(|end| sample.name.ends_with(end));
        let labels = sample.labels.iter().take(LABELS_KEPT_MAX);
        let labels = labels.map(|(key, value)| Attribute::new(key, cut(value, LABEL_BYTES_MAX).as_str()));
        let data = MetricData {
            name: cut(sample.name, LABEL_BYTES_MAX),
            kind: if grows { MetricKind::CumulativeSum } else { MetricKind::Gauge },
            monotonic: grows,
            value: sample.value,
            attributes: std::iter::once(self.address()).chain(labels).collect(),
            ..MetricData::default()
        };
        sample.value.is_finite().then(|| self.event(Arc::clone(&self.named), data, at))
    }

    fn event(&self, entity: Arc<EntityRef>, data: MetricData, at: UnixNanos) -> UnifiedEvent {
        let mut seed = Seed::new("scrape").number(entity.lineage).text(&self.target).text(&data.name);
        for attribute in &data.attributes {
            seed = seed.text(&attribute.key).text(attribute.value.as_text().unwrap_or_default());
        }
        UnifiedEvent {
            id: seed.event(at),
            timestamp: at,
            observed_at: at,
            kind: EventKind::Metric,
            source: Source::Prometheus,
            severity: EventSeverity::Info,
            entity,
            payload: Payload::Metric(Box::new(data)),
            ..UnifiedEvent::default()
        }
    }
}

fn named(cluster: &str, text: &str) -> Result<EntityRef, String> {
    let parts: Vec<&str> = text.split('/').collect();
    let [namespace, kind, name] = parts[..] else {
        return Err(format!("`{text}` is no entity: write namespace/Kind/name"));
    };
    let base = EntityRef { cluster: cluster.into(), namespace: namespace.into(), ..EntityRef::default() };
    Ok(match kind {
        kinds::NODE => EntityRef { node: name.into(), ..base },
        kinds::SERVICE => EntityRef { service: name.into(), ..base },
        kinds::POD => EntityRef { pod: name.into(), ..base },
        "Deployment" | "StatefulSet" | "DaemonSet" | "Job" | "CronJob" => {
            EntityRef { workload_kind: kind.into(), workload: name.into(), ..base }
        }
        kind => EntityRef { object_kind: kind.into(), object: name.into(), ..base },
    })
}
