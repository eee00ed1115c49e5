//! A sample as events.

use std::sync::Arc;

use tapio_schemas::attribute::Attribute;
use tapio_schemas::entity::EntityRef;
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::{EventId, UnixNanos};
use tapio_schemas::kind::{EventKind, EventSeverity, Source};
use tapio_schemas::payload::{MetricData, MetricKind, Payload};

use super::read::{Psi, Sample};

/// Appends the events of one sample of one group.
pub fn append(sample: &Sample, entity: &Arc<EntityRef>, at: UnixNanos, out: &mut Vec<UnifiedEvent>) {
    let mut writer = Writer { entity, at, out };
    if let Some(memory) = &sample.memory {
        let limit = memory.limit.unwrap_or(0);
        writer.gauge("container.memory.usage", "By", memory.working_set as f64, limit as f64, vec![]);
        writer.gauge("container.memory.raw_usage", "By", memory.raw as f64, limit as f64, vec![]);
        for (name, count) in &memory.events {
            writer.sum("container.memory.events", "1", *count as f64, vec![Attribute::new("event", *name)]);
        }
    }
    if let Some(cpu) = &sample.cpu {
        if let Some(seconds) = cpu.used_seconds {
            writer.sum("container.cpu.time", "s", seconds, vec![]);
        }
        // Without a quota there are no periods, and nothing to tell.
        if let Some((periods, throttled, seconds)) = cpu.quota.filter(|(periods, ..)| *periods > 0) {
            writer.sum("container.cpu.periods", "1", periods as f64, vec![]);
            writer.sum("container.cpu.throttled.periods", "1", throttled as f64, vec![]);
            writer.sum("container.cpu.throttled.time", "s", seconds, vec![]);
        }
    }
    if let Some(pids) = &sample.pids {
        writer.gauge(
            "container.pids.count",
            "1",
            pids.current as f64,
            pids.limit.unwrap_or(0) as f64,
            vec![],
        );
    }
    if let Some(io) = &sample.io {
        for (direction, bytes) in [("read", io.read), ("write", io.written)] {
            if bytes > 0 {
                writer.sum(
                    "container.io.bytes",
                    "By",
                    bytes as f64,
                    vec![Attribute::new("direction", direction)],
                );
            }
        }
    }
    writer.pressure("container.memory.pressure", sample.memory_pressure);
    writer.pressure("container.cpu.pressure", sample.cpu_pressure);
    writer.pressure("container.io.pressure", sample.io_pressure);
}

struct Writer<'a> {
    entity: &'a Arc<EntityRef>,
    at: UnixNanos,
    out: &'a mut Vec<UnifiedEvent>,
}

impl Writer<'_> {
    fn gauge(&mut self, name: &str, unit: &str, value: f64, limit: f64, attributes: Vec<Attribute>) {
        let kind = MetricKind::Gauge;
        self.push(MetricData {
            name: name.into(),
            unit: unit.into(),
            kind,
            value,
            limit,
            attributes,
            ..MetricData::default()
        });
    }

    fn sum(&mut self, name: &str, unit: &str, value: f64, attributes: Vec<Attribute>) {
        let kind = MetricKind::CumulativeSum;
        self.push(MetricData {
            name: name.into(),
            unit: unit.into(),
            kind,
            monotonic: true,
            value,
            attributes,
            ..MetricData::default()
        });
    }

    fn pressure(&mut self, name: &str, psi: Option<Psi>) {
        if let Some(psi) = psi {
            let total = vec![Attribute::new("total", psi.total_seconds)];
            self.gauge(name, "%", psi.avg10, 0.0, total);
        }
    }

    fn push(&mut self, metric: MetricData) {
        let first = metric.attributes.first().map(|a| a.value.to_string()).unwrap_or_default();
        let seed = format!("{:032x}{}{}{first}", self.entity.lineage, self.entity.cgroup, metric.name);
        self.out.push(UnifiedEvent {
            id: EventId::derive(self.at, seed.as_bytes()),
            timestamp: self.at,
            observed_at: self.at,
            kind: EventKind::CgroupSample,
            source: Source::Cgroup,
            severity: EventSeverity::Info,
            entity: Arc::clone(self.entity),
            payload: Payload::Metric(Box::new(metric)),
            ..UnifiedEvent::default()
        });
    }
}
