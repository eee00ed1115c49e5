//! The prometheus registry as OpenTelemetry instruments.
//!
//! There is one set of metrics, the registry. The bridge reads its text form and shows every family
//! as an observable instrument: counters and the parts of histograms (`_count`, `_sum`, `_bucket`
//! with `le`) as counters, the rest as gauges.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex};

use opentelemetry::KeyValue;
use opentelemetry::metrics::{AsyncInstrument, Meter};

use super::Metrics;

type Series = Vec<(Vec<KeyValue>, f64)>;

/// Feeds a meter from a registry. Clones feed the same meter.
#[derive(Clone)]
pub(super) struct Bridge {
    meter: Meter,
    metrics: Metrics,
    values: Arc<Mutex<HashMap<String, Series>>>,
    known: Arc<Mutex<HashSet<String>>>,
}

impl fmt::Debug for Bridge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bridge")
    }
}

impl Bridge {
    pub(super) fn new(meter: Meter, metrics: Metrics) -> Self {
        Self { meter, metrics, values: Arc::default(), known: Arc::default() }
    }

    /// Takes the current values, and makes instruments for families that are new. Not called from
    /// an instrument's callback, where the meter is locked.
    pub(super) fn refresh(&self) {
        let parsed = parse(&self.metrics.encode());
        let mut values = HashMap::new();
        let mut new = Vec::new();
        {
            let mut known = self.known.lock().expect("bridge lock");
            for sample in parsed {
                if known.insert(sample.name.clone()) {
                    new.push((sample.name.clone(), sample.monotonic));
                }
                let series: &mut Series = values.entry(sample.name).or_default();
                series.push((sample.attributes, sample.value));
            }
        }
        *self.values.lock().expect("bridge lock") = values;
        for (name, monotonic) in new {
            self.add_instrument(name, monotonic);
        }
    }

    fn add_instrument(&self, name: String, monotonic: bool) {
        let values = Arc::clone(&self.values);
        let key = name.clone();
        let observe = move |instrument: &dyn AsyncInstrument<f64>| {
            for (attributes, value) in values.lock().expect("bridge lock").get(&key).into_iter().flatten() {
                instrument.observe(*value, attributes);
            }
        };
        if monotonic {
            self.meter.f64_observable_counter(name).with_callback(observe).build();
        } else {
            self.meter.f64_observable_gauge(name).with_callback(observe).build();
        }
    }
}

#[derive(Debug, PartialEq)]
struct Sample {
    name: String,
    attributes: Vec<KeyValue>,
    value: f64,
    monotonic: bool,
}

/// Samples of an OpenMetrics text as prometheus-client writes it. Lines that are no samples are
/// passed over.
fn parse(text: &str) -> Vec<Sample> {
    let mut types: HashMap<&str, &str> = HashMap::new();
    let mut samples = Vec::new();
    for line in text.lines() {
        if let Some(declaration) = line.strip_prefix("# TYPE ") {
            types.extend(declaration.split_once(' '));
        } else if !line.starts_with('#') {
            samples.extend(parse_sample(line, &types));
        }
    }
    samples
}

fn parse_sample(line: &str, types: &HashMap<&str, &str>) -> Option<Sample> {
    let name_end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(name_end);
    let (attributes, rest) = match rest.strip_prefix('{') {
        Some(labels) => parse_labels(labels)?,
        None => (Vec::new(), rest),
    };
    let value = rest.split_whitespace().next()?.parse().ok()?;
    let parts = ["_total", "_count", "_sum", "_bucket"];
    let family = parts.iter().find_map(|part| name.strip_suffix(part));
    let monotonic =
        family.is_some_and(|family| matches!(types.get(family), Some(&("counter" | "histogram"))));
    Some(Sample { name: name.to_owned(), attributes, value, monotonic })
}

/// `a="b",c="d"} 1` gives the labels and ` 1`.
fn parse_labels(mut text: &str) -> Option<(Vec<KeyValue>, &str)> {
    let mut attributes = Vec::new();
    loop {
        text = text.strip_prefix(',').unwrap_or(text);
        if let Some(rest) = text.strip_prefix('}') {
            return Some((attributes, rest));
        }
        let (key, rest) = text.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = rest.char_indices();
        let end = loop {
            match chars.next()? {
                (at, '"') => break at,
                (_, '\\') => match chars.next()?.1 {
                    'n' => value.push('\n'),
                    escaped => value.push(escaped),
                },
                (_, plain) => value.push(plain),
            }
        };
        attributes.push(KeyValue::new(key.to_owned(), value));
        text = &rest[end + 1..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::family::Family;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::metrics::histogram::Histogram;

    #[test]
    fn every_kind_of_metric_is_read_back() {
        let metrics = Metrics::new();
        let dropped: Family<[(&str, String); 1], Counter> = metrics.shared("dropped", "Drops");
        dropped.get_or_create(&[("reason", "a \"b\"\n\\".to_owned())]).inc_by(3);
        let depth: Gauge = metrics.shared("depth", "Depth");
        depth.set(-2);
        let delay = Histogram::new([1.0]);
        metrics.register("delay", "Delay", delay.clone());
        delay.observe(0.5);
        let samples = parse(&metrics.encode());
        let find = |name: &str| samples.iter().find(|sample| sample.name == name).unwrap();
        assert_eq!(find("tapio_dropped_total").value, 3.0);
        assert!(find("tapio_dropped_total").monotonic);
        let label = KeyValue::new("reason", "a \"b\"\n\\");
        assert_eq!(find("tapio_dropped_total").attributes, [label]);
        assert_eq!((find("tapio_depth").value, find("tapio_depth").monotonic), (-2.0, false));
        assert!(find("tapio_delay_bucket").monotonic && find("tapio_delay_count").monotonic);
        assert_eq!(find("tapio_delay_sum").value, 0.5);
    }
}
