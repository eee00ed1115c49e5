//! What a metric measures, by the words of its name, its unit and its attributes.

use tapio_schemas::Measure;
use tapio_schemas::payload::MetricKind;

/// How the values of a metric become those of its measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As they are.
    Gauge,
    /// A sum, per second.
    Rate,
    /// Mean of a histogram over the interval.
    Mean,
    /// Observations of a histogram per second.
    CountRate,
}

/// What tells series of one measure apart, or leaves them out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Label {
    None,
    /// Parts of the whole (`cpu.mode`) are left out.
    Whole(&'static str),
    /// Side of the call.
    Side(Option<&'static str>),
    /// Requests that were answered, not those that were made.
    Answered,
    /// Name of the system call.
    SystemCall,
}

/// What a limit does to a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limit {
    /// Nothing.
    Ignored,
    /// It counts as a share of it; without one it says nothing.
    Needed,
    /// There is a share of it, which says more; only without one it counts as it is.
    Absent,
}

/// How to read a metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// What is measured.
    pub measure: Measure,
    /// How.
    pub form: Form,
    scale: f64,
    limit: Limit,
    label: Label,
}

/// The quantile of latencies that is compared.
const QUANTILES: [&str; 5] = ["0.95", ".95", "95", "p95", "P95"];
/// Attributes that say of which quantile a value is.
const QUANTILE_KEYS: [&str; 3] = ["quantile", "percentile", "stat"];
/// Attributes that say of which side of a call a value is.
const SIDE_KEYS: [&str; 4] = ["side", "reporter", "span.kind", "direction"];
/// Attributes that say of which part of the whole a value is.
const PART_KEYS: [&str; 5] = ["cpu.mode", "cpu.logical_number", "state", "mode", "cpu"];

impl Reading {
    fn new(measure: Measure, form: Form, label: Label) -> Self {
        Self { measure, form, scale: 1.0, limit: Limit::Ignored, label }
    }

    fn scaled(self, scale: f64) -> Self {
        Self { scale, ..self }
    }

    /// Factor of the value; `None` when it says nothing without its limit.
    pub fn scale_with(&self, limit: f64) -> Option<f64> {
        match self.limit {
            Limit::Needed => (limit > 0.0).then(|| self.scale / limit),
            Limit::Absent => (limit <= 0.0).then_some(self.scale),
            Limit::Ignored => Some(self.scale),
        }
    }

    /// What tells the series apart; `None` when it is not one of the measure.
    pub fn label<'a>(&self, attribute: impl Fn(&str) -> Option<&'a str>) -> Option<&'a str> {
        match self.label {
            Label::None => Some(""),
            Label::Whole(label) => PART_KEYS.iter().all(|key| attribute(key).is_none()).then_some(label),
            Label::SystemCall => {
                Some(["syscall", "system_call", "name"].iter().find_map(|key| attribute(key)).unwrap_or(""))
            }
            Label::Answered => (side(&attribute).is_none_or(|side| side == "server")).then_some(""),
            Label::Side(named) => {
                let quantile = QUANTILE_KEYS.iter().find_map(|key| attribute(key));
                if quantile.is_some_and(|quantile| !QUANTILES.contains(&quantile)) {
                    return None;
                }
                Some(side(&attribute).or(named).unwrap_or("server"))
            }
        }
    }
}

fn side<'a>(attribute: impl Fn(&str) -> Option<&'a str>) -> Option<&'static str> {
    let said = SIDE_KEYS.iter().find_map(|key| attribute(key))?;
    let is = |names: &[&str]| names.iter().any(|name| said.eq_ignore_ascii_case(name));
    if is(&["client", "source", "outbound", "SPAN_KIND_CLIENT"]) {
        return Some("client");
    }
    is(&["server", "destination", "inbound", "SPAN_KIND_SERVER"]).then_some("server")
}

/// What a metric measures; nothing for most.
pub fn reading(name: &str, unit: &str, kind: MetricKind, monotonic: bool) -> [Option<Reading>; 2] {
    let lower = name.to_ascii_lowercase();
    let words: Vec<&str> =
        lower.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()).collect();
    let has = |any: &[&str]| words.iter().any(|word| any.contains(word));
    if has(&["node", "host", "machine", "system"]) && !has(&["syscall", "syscalls"]) {
        return [None, None];
    }
    let gauge = matches!(kind, MetricKind::Gauge) || (kind == MetricKind::CumulativeSum && !monotonic);
    let share = match unit {
        "1" => Some(1.0),
        "%" => Some(0.01),
        _ => None,
    };
    let grows = kind == MetricKind::DeltaSum || (kind == MetricKind::CumulativeSum && monotonic);
    let growing = grows.then_some(Form::Rate);
    let one = |reading| [Some(reading), None];
    if has(&["cpu"]) && !has(&["request", "throttled", "throttling", "pressure"]) {
        return cpu(&has, unit, share.filter(|_| gauge), growing, gauge);
    }
    if has(&["memory", "mem"]) && gauge && !has(&["request", "pressure"]) {
        return memory(&has, unit, share);
    }
    if let Some(scale) = seconds(unit, &has) {
        return latency(&has, kind, scale);
    }
    if let Some(scale) = share.filter(|_| gauge && has(&["success", "successful"])) {
        return one(Reading::new(Measure::SuccessShare, Form::Gauge, Label::None).scaled(scale));
    }
    if has(&["syscall", "syscalls"]) {
        let form = growing.unwrap_or(Form::Gauge);
        return one(Reading::new(Measure::SystemCalls, form, Label::SystemCall));
    }
    if gauge && ["{request}/s", "{requests}/s", "{call}/s", "1/s", "req/s", "reqps"].contains(&unit)
        || gauge && unit == "{request}" && has(&["rate"])
    {
        return one(Reading::new(Measure::RequestsPerSecond, Form::Gauge, Label::Answered));
    }
    if let Some(form) = growing
        && (has(&["requests", "handled"]) || ["{request}", "{requests}"].contains(&unit))
        && !has(&["client", "bytes", "errors", "failed"])
    {
        return one(Reading::new(Measure::RequestsPerSecond, form, Label::Answered));
    }
    [None, None]
}

fn cpu(
    has: &impl Fn(&[&str]) -> bool,
    unit: &str,
    share: Option<f64>,
    growing: Option<Form>,
    gauge: bool,
) -> [Option<Reading>; 2] {
    if let Some(scale) = share {
        let label = if has(&["limit"]) { "" } else { "core" };
        return [Some(Reading::new(Measure::CpuShare, Form::Gauge, Label::Whole(label)).scaled(scale)), None];
    }
    let is_use = !has(&["limit", "capacity", "allocatable", "idle", "quota", "period", "periods"]);
    // Seconds of processor time per second, or processors.
    let (scale, form) = match unit {
        "s" => (1.0, growing),
        "ns" => (1e-9, growing),
        "us" => (1e-6, growing),
        "" if has(&["seconds"]) => (1.0, growing),
        "{cpu}" | "{cpus}" | "{core}" | "{cores}" => (1.0, (gauge && is_use).then_some(Form::Gauge)),
        "m{cpu}" | "{millicore}" | "{millicores}" => (1e-3, (gauge && is_use).then_some(Form::Gauge)),
        _ => return [None, None],
    };
    let Some(form) = form else { return [None, None] };
    let reading = |measure, limit| {
        let reading = Reading::new(measure, form, Label::Whole("time")).scaled(scale);
        Some(Reading { limit, ..reading })
    };
    [reading(Measure::CpuShare, Limit::Needed), reading(Measure::CpuCores, Limit::Absent)]
}

fn memory(has: &impl Fn(&[&str]) -> bool, unit: &str, share: Option<f64>) -> [Option<Reading>; 2] {
    if let Some(scale) = share.filter(|_| !has(&["available", "free"])) {
        return [Some(Reading::new(Measure::MemoryShare, Form::Gauge, Label::Whole("")).scaled(scale)), None];
    }
    let is_bytes = unit == "By" || (unit.is_empty() && has(&["bytes"]));
    if share.is_some() || !is_bytes || !has(&["usage", "working", "resident", "rss"]) {
        return [None, None];
    }
    let reading = |measure, limit| {
        let reading = Reading::new(measure, Form::Gauge, Label::Whole("limit"));
        Some(Reading { limit, ..reading })
    };
    [reading(Measure::MemoryShare, Limit::Needed), reading(Measure::MemoryBytes, Limit::Absent)]
}

/// Factor to seconds of a unit of time.
fn seconds(unit: &str, has: &impl Fn(&[&str]) -> bool) -> Option<f64> {
    if !(has(&["duration", "latency"]) || has(&["response", "request"]) && has(&["time"])) {
        return None;
    }
    Some(match unit {
        "s" => 1.0,
        "ms" => 1e-3,
        "us" => 1e-6,
        "ns" => 1e-9,
        "" if has(&["seconds"]) => 1.0,
        "" if has(&["milliseconds"]) => 1e-3,
        _ => return None,
    })
}

fn latency(has: &impl Fn(&[&str]) -> bool, kind: MetricKind, scale: f64) -> [Option<Reading>; 2] {
    // Not of requests: collectors of garbage, jobs, schedulers.
    if has(&["gc", "jvm", "job", "scheduling", "compilation", "connection"]) {
        return [None, None];
    }
    let named = if has(&["client"]) { Some("client") } else { has(&["server"]).then_some("server") };
    let side = Label::Side(named);
    let latency = |form| Reading::new(Measure::LatencySeconds, form, side).scaled(scale);
    match kind {
        MetricKind::Gauge => [Some(latency(Form::Gauge)), None],
        MetricKind::Histogram | MetricKind::Summary if named == Some("client") => {
            [Some(latency(Form::Mean)), None]
        }
        MetricKind::Histogram | MetricKind::Summary => {
            let count = Reading::new(Measure::RequestsPerSecond, Form::CountRate, Label::Answered);
            [Some(latency(Form::Mean)), Some(count)]
        }
        MetricKind::CumulativeSum | MetricKind::DeltaSum => [None, None],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measure(name: &str, unit: &str, kind: MetricKind) -> Option<(Measure, Form)> {
        reading(name, unit, kind, true)[0].map(|reading| (reading.measure, reading.form))
    }

    #[test]
    fn metrics_of_many_exporters_come_to_the_same_measures() {
        use Measure::{CpuShare, LatencySeconds, MemoryShare, RequestsPerSecond, SuccessShare, SystemCalls};
        use MetricKind::{CumulativeSum, DeltaSum, Gauge, Histogram};
        for (name, unit, kind, expected) in [
            ("k8s.pod.cpu_limit_utilization", "1", Gauge, Some((CpuShare, Form::Gauge))),
            ("container.cpu.time", "s", CumulativeSum, Some((CpuShare, Form::Rate))),
            ("container_cpu_usage_seconds_total", "", CumulativeSum, Some((CpuShare, Form::Rate))),
            ("process.cpu.utilization", "1", Gauge, Some((CpuShare, Form::Gauge))),
            ("k8s.pod.cpu_request_utilization", "1", Gauge, None),
            ("k8s.node.cpu.utilization", "1", Gauge, None),
            ("node_cpu_seconds_total", "", CumulativeSum, None),
            ("system.cpu.utilization", "1", Gauge, None),
            ("k8s.pod.cpu.usage", "{cpu}", Gauge, Some((CpuShare, Form::Gauge))),
            ("k8s.container.cpu_limit", "{cpu}", Gauge, None),
            ("container_memory_working_set_bytes", "", Gauge, Some((MemoryShare, Form::Gauge))),
            ("process_resident_memory_bytes", "", Gauge, Some((MemoryShare, Form::Gauge))),
            ("k8s.pod.memory_limit_utilization", "1", Gauge, Some((MemoryShare, Form::Gauge))),
            ("container.memory.usage", "By", Gauge, Some((MemoryShare, Form::Gauge))),
            ("http.server.request.duration", "s", Histogram, Some((LatencySeconds, Form::Mean))),
            ("istio_request_duration_milliseconds", "", Histogram, Some((LatencySeconds, Form::Mean))),
            ("pod.rpc.duration", "s", Gauge, Some((LatencySeconds, Form::Gauge))),
            ("jvm.gc.duration", "s", Histogram, None),
            ("pod.rpc.rate", "{request}/s", Gauge, Some((RequestsPerSecond, Form::Gauge))),
            ("istio_requests_total", "", CumulativeSum, Some((RequestsPerSecond, Form::Rate))),
            ("http.requests", "{request}", DeltaSum, Some((RequestsPerSecond, Form::Rate))),
            ("frontend.success_ratio", "1", Gauge, Some((SuccessShare, Form::Gauge))),
            ("pod.syscall.count", "{call}", Gauge, Some((SystemCalls, Form::Gauge))),
            ("queue.length", "{item}", Gauge, None),
        ] {
            assert_eq!(measure(name, unit, kind), expected, "{name}");
        }
        let twice = reading("http.server.request.duration", "s", Histogram, false);
        assert_eq!(twice[1].map(|r| (r.measure, r.form)), Some((RequestsPerSecond, Form::CountRate)));
    }

    #[test]
    fn attributes_choose_the_quantile_and_the_side() {
        let gauge = reading("pod.rpc.duration", "s", MetricKind::Gauge, false)[0].unwrap();
        let label = |pairs: &[(&str, &'static str)]| {
            gauge.label(|key| pairs.iter().find(|(k, _)| *k == key).map(|(_, v)| *v))
        };
        assert_eq!(label(&[("quantile", "0.95"), ("side", "client")]), Some("client"));
        assert_eq!(label(&[("quantile", "0.99"), ("side", "client")]), None);
        assert_eq!(label(&[("reporter", "destination")]), Some("server"));
        assert_eq!(label(&[]), Some("server"));
        let requests = reading("istio_requests_total", "", MetricKind::CumulativeSum, true)[0].unwrap();
        let asked = requests.label(|key| (key == "reporter").then_some("source"));
        assert_eq!(asked, None, "requests that were made are not requests that were answered");
        let cpu = reading("container.cpu.utilization", "1", MetricKind::Gauge, false)[0].unwrap();
        assert_eq!(cpu.label(|key| (key == "cpu.mode").then_some("user")), None);
    }

    #[test]
    fn a_share_of_a_limit_needs_one() {
        let usage = reading("container.memory.usage", "By", MetricKind::Gauge, false)[0].unwrap();
        assert_eq!((usage.scale_with(0.0), usage.scale_with(4.0)), (None, Some(0.25)));
        let bytes = reading("container.memory.usage", "By", MetricKind::Gauge, false)[1].unwrap();
        assert_eq!(bytes.measure, Measure::MemoryBytes);
        assert_eq!(
            (bytes.scale_with(0.0), bytes.scale_with(4.0)),
            (Some(1.0), None),
            "one of the two counts"
        );
        let time = "container_cpu_usage_seconds_total";
        let cores = reading(time, "", MetricKind::CumulativeSum, true)[1].unwrap();
        assert_eq!((cores.measure, cores.scale_with(0.0)), (Measure::CpuCores, Some(1.0)));
        let percent = reading("pod.cpu.utilization", "%", MetricKind::Gauge, false)[0].unwrap();
        assert_eq!(percent.scale_with(0.0), Some(0.01));
    }
}
