//! One line of a recording and what it becomes.

use std::sync::Arc;

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::value::RawValue;
use tapio_agents::collectors::kubernetes::RecordedCluster;
use tapio_agents::collectors::otlp::{convert, json};
use tapio_schemas::{EntityRef, SmolStr, UnifiedEvent, UnixNanos};

/// A line: when, of what kind, and the request as it stands.
#[derive(Debug)]
pub struct RecordedLine {
    /// When it was observed.
    pub at: UnixNanos,
    signal: String,
    request: Box<RawValue>,
}

impl RecordedLine {
    /// Reads one line.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct Raw {
            at_unix_nano: serde_json::Value,
            signal: String,
            request: Box<RawValue>,
        }
        let raw: Raw = serde_json::from_str(text).context("not a line of a recording")?;
        let at = raw.at_unix_nano.as_u64().or_else(|| raw.at_unix_nano.as_str()?.parse().ok());
        let at = at
            .map(UnixNanos)
            .with_context(|| format!("at_unix_nano {} is not a number", raw.at_unix_nano))?;
        Ok(Self { at, signal: raw.signal, request: raw.request })
    }
}

/// Turns lines into events, with the code of the collectors.
pub struct Converter {
    cluster: SmolStr,
    objects: RecordedCluster,
}

impl Converter {
    /// For recordings of one cluster.
    pub fn new(cluster: &str) -> Self {
        Self { cluster: SmolStr::new(cluster), objects: RecordedCluster::new(cluster) }
    }

    /// Events of a line, in its order.
    pub fn convert(&mut self, line: RecordedLine) -> anyhow::Result<Vec<UnifiedEvent>> {
        let scope = convert::Scope::unbounded(&self.cluster, line.at);
        let request = line.request.get().as_bytes();
        let mut events = match line.signal.as_str() {
            "traces" => convert::traces(&scope, json::from_slice(request)?).0,
            "metrics" => convert::metrics(&scope, json::from_slice(request)?).0,
            "logs" => convert::logs(&scope, json::from_slice(request)?).0,
            "k8s_object" => self.objects.object(line.at, &serde_json::from_slice(request)?)?,
            "k8s_event" => {
                self.objects.event(line.at, &serde_json::from_slice(request)?)?.into_iter().collect()
            }
            "tapio" => vec![self.own(serde_json::from_slice(request)?)],
            other => bail!("signal `{other}` is none of traces, metrics, logs, k8s_object, k8s_event, tapio"),
        };
        events.extend(self.objects.lasting(line.at));
        Ok(events)
    }

    /// An event as it was recorded; the lineage is not written and is computed anew.
    fn own(&self, mut event: UnifiedEvent) -> UnifiedEvent {
        let mut entity = EntityRef::clone(&event.entity);
        entity.cluster = self.cluster.clone();
        event.entity = Arc::new(entity.sealed());
        event
    }
}
