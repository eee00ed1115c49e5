//! Measures of services: which metrics tell how a service is, and their values by window.
//!
//! A metric is recognised by the words of its name, its unit and its attributes, so that the names of the OpenTelemetry semantic
//! conventions, of cAdvisor, of service meshes and of home-made exporters come to the same few measures. What is of a machine
//! is not of a service. The last value of a window counts, so the order of arrival does not matter; cumulative
//! values become rates since the window before.

use std::collections::BTreeMap;
use std::sync::Arc;

use foldhash::{HashMap, HashMapExt};
use smol_str::SmolStr;
use tapio_schemas::attribute::ArchivedAttributeValue;
use tapio_schemas::entity::kinds;
use tapio_schemas::payload::{ArchivedMetricData, ArchivedMetricKind, ArchivedPayload, MetricKind};
use tapio_schemas::wire::EventView;
use tapio_schemas::{EventId, Measure, ServiceMeter, UnixNanos};
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64_with_seed};

use super::counters::Counters;
use super::entities::Known;
use super::measures::{Form, Reading, reading};

/// Measures per shard and window; further ones are counted and left out.
const METERS_MAX: usize = 8192;
/// Cumulative series whose last value is remembered per shard; when they are too many, those silent for [`SILENT_NS`] go.
const BEFORE_MAX: usize = 16_384;
/// A cumulative series that was silent for so long begins anew, ns of event time.
const SILENT_NS: u64 = 600_000_000_000;
/// Metrics of which it is remembered what they measure. When they are too many, it is worked out again.
const READINGS_MAX: usize = 4096;

/// Windows of measures that have not ended.
pub struct Meters {
    window_ns: u64,
    /// By name, unit and kind.
    readings: HashMap<u64, Readings>,
    windows: BTreeMap<u64, HashMap<Series, Value>>,
    /// Last cumulative values, by series.
    before: HashMap<u64, Cumulative>,
}

/// A metric measures up to two things: a histogram of durations also counts requests.
type Readings = [Option<Reading>; 2];

/// One series of one measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Series {
    /// Owner, metric and attributes.
    id: u64,
    measure: Measure,
}

struct Value {
    of: Arc<Known>,
    form: Form,
    label: SmolStr,
    at: UnixNanos,
    event: EventId,
    value: f64,
    count: f64,
    start: UnixNanos,
    is_cumulative: bool,
}

#[derive(Debug, Clone, Copy)]
struct Cumulative {
    at: UnixNanos,
    sum: f64,
    count: f64,
}

impl Meters {
    /// No windows yet.
    pub fn new(window_ns: u64) -> Self {
        Self {
            window_ns: window_ns.max(1),
            readings: HashMap::new(),
            windows: BTreeMap::new(),
            before: HashMap::new(),
        }
    }

    /// Takes an event when it is a metric that measures a service.
    pub fn take(&mut self, view: &EventView<'_>, of: &Arc<Known>, told: UnixNanos, counters: &mut Counters) {
        let ArchivedPayload::Metric(metric) = &view.event.payload else { return };
        let name = view.text(&metric.name);
        let unit = view.text(&metric.unit);
        let kind = kind_of(metric);
        let shape = kind as u64 | u64::from(metric.monotonic) << 8;
        let known = xxh3_64_with_seed(name.as_bytes(), xxh3_64_with_seed(unit.as_bytes(), shape));
        if self.readings.len() >= READINGS_MAX && !self.readings.contains_key(&known) {
            self.readings.clear();
        }
        let readings =
            *self.readings.entry(known).or_insert_with(|| reading(name, unit, kind, metric.monotonic));
        if readings[0].is_none() || !is_of_a_service(of) {
            return;
        }
        for reading in readings.into_iter().flatten() {
            self.value(view, metric, of, reading, told, counters);
        }
    }

    fn value(
        &mut self,
        view: &EventView<'_>,
        metric: &ArchivedMetricData,
        of: &Arc<Known>,
        reading: Reading,
        told: UnixNanos,
        counters: &mut Counters,
    ) {
        let limit = metric.limit.to_native();
        let Some(scale) = reading.scale_with(limit) else { return };
        let (value, count) = (metric.value.to_native() * scale, metric.count.to_native() as f64);
        if !value.is_finite() {
            return;
        }
        let attribute = |key: &str| {
            metric.attributes.iter().find(|a| view.text(&a.key) == key).and_then(|a| match &a.value {
                ArchivedAttributeValue::Text(index) => Some(view.text(index)),
                _ => None,
            })
        };
        let Some(label) = reading.label(attribute) else { return };
        // What comes after its window was told counts in the next one.
        let at = view.timestamp();
        let start = at.max(told.plus(1)).0.saturating_sub(1) / self.window_ns * self.window_ns;
        let window = self.windows.entry(start).or_default();
        let series = Series { id: series_of(view, metric, of), measure: reading.measure };
        if window.len() >= METERS_MAX && !window.contains_key(&series) {
            counters.evicted.meters += 1;
            return;
        }
        let event = EventId(view.event.id.0.to_native());
        if window.get(&series).is_some_and(|known| (known.at, known.event) >= (at, event)) {
            return;
        }
        let value = Value {
            of: Arc::clone(of),
            form: reading.form,
            label: SmolStr::new(label),
            at,
            event,
            value,
            count,
            start: UnixNanos(metric.start.0.to_native()),
            is_cumulative: metric.monotonic && kind_of(metric) != MetricKind::DeltaSum,
        };
        window.insert(series, value);
    }

    /// End of the earliest window.
    pub fn due(&self) -> Option<UnixNanos> {
        self.windows.keys().next().map(|start| UnixNanos(start + self.window_ns))
    }

    /// Tells the windows that have ended.
    pub fn tell(&mut self, step: UnixNanos, out: &mut Vec<ServiceMeter>) {
        while let Some(entry) = self.windows.first_entry() {
            if *entry.key() + self.window_ns > step.0 {
                break;
            }
            let mut values: Vec<(Series, Value)> = entry.remove().into_iter().collect();
            values.sort_unstable_by(|a, b| order(a).cmp(&order(b)));
            let first = out.len();
            let mut weight = 0.0;
            for (series, value) in &values {
                let Some((value_now, weight_now)) = self.measured(*series, value) else { continue };
                let told = ServiceMeter { value: value_now, ..meter(series.measure, value) };
                match out[first..].last_mut() {
                    Some(last) if is_same(last, &told) => {
                        (last.value, weight) =
                            united(told.measure, value.form, (last.value, weight), (value_now, weight_now));
                    }
                    _ => {
                        out.push(told);
                        weight = weight_now;
                    }
                }
            }
            self.make_room(step);
        }
    }

    /// Value and weight, so that the series of one measure can be united; `None` while there is nothing to compare
    /// a cumulative value with.
    fn measured(&mut self, series: Series, value: &Value) -> Option<(f64, f64)> {
        if value.form == Form::Gauge {
            return Some((value.value, 1.0));
        }
        if !value.is_cumulative {
            let seconds = value.at.since(value.start) as f64 / 1e9;
            return match value.form {
                Form::Mean => (value.count > 0.0).then_some((value.value, value.count)),
                _ if value.start.0 == 0 || seconds <= 0.0 => None,
                Form::CountRate => Some((value.count / seconds, 1.0)),
                _ => Some((value.value / seconds, 1.0)),
            };
        }
        // The value of a histogram is the quotient of its sum and its number.
        let sum = if value.form == Form::Mean { value.value * value.count } else { value.value };
        let now = Cumulative { at: value.at, sum, count: value.count };
        let key = series.id ^ xxh3_64_with_seed(&[], series.measure as u64);
        let before = self.before.insert(key, now);
        let before = before.filter(|b| b.at < now.at && now.at.since(b.at) <= SILENT_NS)?;
        // What is less than before began anew, from zero.
        let grew = now.sum >= before.sum && now.count >= before.count;
        let (sum, count) =
            if grew { (now.sum - before.sum, now.count - before.count) } else { (now.sum, now.count) };
        let seconds = now.at.since(before.at) as f64 / 1e9;
        match value.form {
            Form::Mean => (count > 0.0).then_some((sum / count, count)),
            Form::CountRate => Some((count / seconds, 1.0)),
            _ => Some((sum / seconds, 1.0)),
        }
    }

    fn make_room(&mut self, step: UnixNanos) {
        if self.before.len() > BEFORE_MAX {
            let mut horizon = step.minus(SILENT_NS);
            while self.before.len() > BEFORE_MAX && horizon < step {
                self.before.retain(|_, before| before.at >= horizon);
                horizon = UnixNanos(horizon.0 + (step.0 - horizon.0).div_ceil(2));
            }
        }
    }
}

/// One value of two series: rates add up, means weigh what they are of, of states the worse counts.
fn united(measure: Measure, form: Form, a: (f64, f64), b: (f64, f64)) -> (f64, f64) {
    match (measure, form) {
        (_, Form::Mean) => ((a.0 * a.1 + b.0 * b.1) / (a.1 + b.1), a.1 + b.1),
        (Measure::RequestsPerSecond, _) | (_, Form::Rate) => (a.0 + b.0, 1.0),
        (Measure::SuccessShare, _) => (a.0.min(b.0), 1.0),
        _ => (a.0.max(b.0), 1.0),
    }
}

fn order<'a>((series, value): &'a (Series, Value)) -> impl Ord + 'a {
    (&value.of.tenant, &value.of.entity.pod, series.measure, &value.label, value.at, value.event, series.id)
}

fn meter(measure: Measure, value: &Value) -> ServiceMeter {
    ServiceMeter {
        at: value.at,
        service: value.of.tenant.clone(),
        pod: value.of.entity.pod.clone(),
        measure,
        label: value.label.clone(),
        value: 0.0,
        evidence: value.event,
    }
}

fn is_same(a: &ServiceMeter, b: &ServiceMeter) -> bool {
    a.measure == b.measure && a.service == b.service && a.pod == b.pod && a.label == b.label
}

fn kind_of(metric: &ArchivedMetricData) -> MetricKind {
    match metric.kind {
        ArchivedMetricKind::Gauge => MetricKind::Gauge,
        ArchivedMetricKind::CumulativeSum => MetricKind::CumulativeSum,
        ArchivedMetricKind::DeltaSum => MetricKind::DeltaSum,
        ArchivedMetricKind::Histogram => MetricKind::Histogram,
        ArchivedMetricKind::Summary => MetricKind::Summary,
    }
}

/// False for what is of a machine, a cluster, or a bare control group.
fn is_of_a_service(of: &Known) -> bool {
    let kind = of.tenant.kind.as_str();
    ![kinds::NODE, kinds::CLUSTER, kinds::NAMESPACE, kinds::CGROUP].contains(&kind)
}

fn series_of(view: &EventView<'_>, metric: &ArchivedMetricData, of: &Known) -> u64 {
    let mut hash = Xxh3Default::new();
    hash.update(&of.owner.to_le_bytes());
    hash.update(view.text(&metric.name).as_bytes());
    for attribute in metric.attributes.iter() {
        if let ArchivedAttributeValue::Text(value) = &attribute.value {
            for part in [view.text(&attribute.key), view.text(value)] {
                hash.update(&(part.len() as u32).to_le_bytes());
                hash.update(part.as_bytes());
            }
        }
    }
    hash.digest()
}
