//! A recording that could as well have been: some of it lost, sampled, slower, at another time, in another order.
//!
//! A verdict that rests on a constant of one system changes when the system is twice as fast or half of its spans are
//! sampled away. Everything is drawn by a hash of where a record stands, so a perturbed recording is the same each time.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use clap::ValueEnum;
use serde_json::Value;
use tapio_schemas::UnixNanos;

use super::edit::Envelope;

/// Longest that a line is delivered after the time it would have been, ns: what is scaled or shuffled is put in order within it.
const HORIZON_NS: u64 = 60_000_000_000;
/// How far lines are shuffled, and how late they arrive, ns.
const SHUFFLE_NS: u64 = 2_000_000_000;
/// Latest that a line is delivered again after its first time, ns.
const AGAIN_NS: u64 = 10_000_000_000;
/// By how much all times are shifted: no whole minute, no whole second.
pub const SHIFT_NS: u64 = 1_000_003_700_000_000;
/// Share of the records that are lost.
const LOST: f64 = 0.2;
/// Share of the traces that are kept.
const SAMPLED: f64 = 0.1;
/// Traces of which the first time is remembered; then all are forgotten and begin anew.
const ANCHORS_MAX: usize = 1 << 20;
/// Members of a request that hold records.
const RECORDS: [&str; 3] = ["spans", "logRecords", "dataPoints"];

/// Signals that write their times as text (RFC 3339), under any name.
const TIMES_AS_TEXT: [&str; 3] = ["k8s_object", "k8s_event", "tapio"];

/// How a recording is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Perturbation {
    /// Each span, log record and data point is lost with a chance of 20 %.
    Lost,
    /// One trace in ten is kept, with its log records.
    Sampled,
    /// Every trace comes twice.
    Doubled,
    /// Every line is delivered again within 10 s.
    Repeated,
    /// Durations are half as long.
    Faster,
    /// Durations are twice as long.
    Slower,
    /// Everything happens eleven and a half days and some later.
    Shifted,
    /// Lines come in a random order within 2 s.
    Shuffled,
    /// Each line arrives up to 2 s late.
    Late,
}

impl Perturbation {
    /// What it does, for a table.
    pub fn says(self) -> &'static str {
        match self {
            Self::Lost => "… 20 % of all records lost",
            Self::Sampled => "… one trace in ten",
            Self::Doubled => "… every trace twice",
            Self::Repeated => "… every record delivered again",
            Self::Faster => "… durations halved",
            Self::Slower => "… durations doubled",
            Self::Shifted => "… at another time",
            Self::Shuffled => "… shuffled within 2 s",
            Self::Late => "… up to 2 s late",
        }
    }

    /// Seconds by which everything is later.
    pub fn shift_s(self) -> f64 {
        if self == Self::Shifted { SHIFT_NS as f64 / 1e9 } else { 0.0 }
    }

    fn duration_factor(self) -> Option<f64> {
        match self {
            Self::Faster => Some(0.5),
            Self::Slower => Some(2.0),
            _ => None,
        }
    }
}

/// The mixing function of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// 0..1, of a number.
fn chance(value: u64) -> f64 {
    mix(value) as f64 / u64::MAX as f64
}

fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| mix(h ^ u64::from(b)))
}

fn nanos(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// Lines of a perturbed recording.
pub struct Perturbed<L> {
    source: L,
    how: Perturbation,
    line: u64,
    /// Lines that wait for their turn, by time and number.
    waiting: BinaryHeap<Reverse<(u64, u64, String)>>,
    newest: u64,
    is_over: bool,
    /// First time seen of each trace: what its durations are scaled around.
    anchors: HashMap<String, u64>,
}

impl<L: Iterator<Item = anyhow::Result<String>>> Iterator for Perturbed<L> {
    type Item = anyhow::Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let is_due = |at: u64| self.is_over || at.saturating_add(HORIZON_NS) <= self.newest;
            if self.waiting.peek().is_some_and(|Reverse((at, _, _))| is_due(*at)) {
                return self.waiting.pop().map(|Reverse((_, _, text))| Ok(text));
            }
            if self.is_over {
                return None;
            }
            match self.source.next() {
                None => self.is_over = true,
                Some(Ok(text)) if text.is_empty() => {}
                Some(Ok(text)) => {
                    if let Err(error) = self.take(&text) {
                        return Some(Err(error.context(format!("line {}", self.line))));
                    }
                }
                Some(Err(error)) => return Some(Err(error)),
            }
        }
    }
}

impl<L> Perturbed<L> {
    /// Perturbs what `source` gives.
    pub fn new(source: L, how: Perturbation) -> Self {
        let (waiting, anchors) = (BinaryHeap::new(), HashMap::new());
        Self { source, how, line: 0, waiting, newest: 0, is_over: false, anchors }
    }

    fn take(&mut self, text: &str) -> anyhow::Result<()> {
        self.line += 1;
        let envelope = Envelope::parse(text)?;
        let at = envelope.at()?;
        self.newest = self.newest.max(at);
        if self.how == Perturbation::Shuffled {
            let later = (chance(self.line) * SHUFFLE_NS as f64) as u64;
            self.waiting.push(Reverse((at + later, self.line, text.to_owned())));
            return Ok(());
        }
        if matches!(self.how, Perturbation::Repeated | Perturbation::Late) {
            let drawn = chance(self.line);
            let later = |most_ns: u64| at + (drawn * most_ns as f64) as u64;
            if self.how == Perturbation::Late {
                self.deliver(&envelope, later(SHUFFLE_NS));
            } else {
                self.deliver(&envelope, at);
                self.deliver(&envelope, later(AGAIN_NS));
            }
            return Ok(());
        }
        let mut request: Value = serde_json::from_str(envelope.request.get())?;
        if self.how == Perturbation::Shifted && TIMES_AS_TEXT.contains(&envelope.signal) {
            shift_text(&mut request);
        }
        let newest = self.request(&mut request, 0);
        let at = match self.how {
            Perturbation::Shifted => at + SHIFT_NS,
            Perturbation::Faster | Perturbation::Slower => at.max(newest),
            _ => at,
        };
        let line = serde_json::json!({"at_unix_nano": at.to_string(), "signal": envelope.signal, "request": request});
        self.newest = self.newest.max(at);
        self.waiting.push(Reverse((at, self.line, line.to_string())));
        Ok(())
    }

    /// The same line at this time.
    fn deliver(&mut self, envelope: &Envelope<'_>, at: u64) {
        let Envelope { signal, request, .. } = envelope;
        let line =
            format!("{{\"at_unix_nano\":\"{at}\",\"signal\":\"{signal}\",\"request\":{}}}\n", request.get());
        self.waiting.push(Reverse((at, self.line, line)));
    }

    /// Changes a request; returns the newest time in it.
    fn request(&mut self, value: &mut Value, place: u64) -> u64 {
        let mut newest = 0;
        match value {
            Value::Array(items) => {
                for (number, item) in items.iter_mut().enumerate() {
                    newest = newest.max(self.request(item, mix(place ^ number as u64)));
                }
            }
            Value::Object(members) => {
                for (number, (key, member)) in members.iter_mut().enumerate() {
                    let place = mix(place ^ (number as u64) << 32);
                    match member {
                        Value::Array(records) if RECORDS.contains(&key.as_str()) => {
                            self.records(records, place);
                        }
                        _ if self.how == Perturbation::Shifted && key.ends_with("UnixNano") => shift(member),
                        _ => {}
                    }
                    newest = newest.max(self.request(member, place));
                }
                if let Some(factor) = self.how.duration_factor() {
                    newest = newest.max(self.scale(members, factor));
                }
            }
            _ => {}
        }
        newest
    }

    fn records(&self, records: &mut Vec<Value>, place: u64) {
        let trace = |record: &Value| record.get("traceId").and_then(Value::as_str).map(str::to_owned);
        match self.how {
            Perturbation::Lost => {
                let mut number = mix(self.line ^ place);
                records.retain(|_| {
                    number = number.wrapping_add(1);
                    chance(number) >= LOST
                });
            }
            Perturbation::Sampled => {
                records.retain(|record| trace(record).is_none_or(|id| chance(hash(&id)) < SAMPLED));
            }
            Perturbation::Doubled => {
                let copies: Vec<Value> = records.iter().filter(|r| trace(r).is_some()).map(copy).collect();
                records.extend(copies);
            }
            _ => {}
        }
    }

    /// Scales the times of a record of a trace around the first time of it, and durations that are measured.
    fn scale(&mut self, record: &mut serde_json::Map<String, Value>, factor: f64) -> u64 {
        if let Some(trace) = record.get("traceId").and_then(Value::as_str) {
            let times = ["endTimeUnixNano", "timeUnixNano"];
            let Some(end) = times.iter().find_map(|key| nanos(record.get(*key)?)) else { return 0 };
            if self.anchors.len() >= ANCHORS_MAX {
                self.anchors.clear();
            }
            let anchor = *self.anchors.entry(trace.to_owned()).or_insert(end);
            let mut newest = 0;
            for (_, value) in record.iter_mut().filter(|(key, _)| key.ends_with("UnixNano")) {
                let Some(time) = nanos(value) else { continue };
                let scaled = (i128::from(time) - i128::from(anchor)) as f64 * factor;
                let time = anchor.saturating_add_signed(scaled as i64);
                newest = newest.max(time);
                *value = Value::String(time.to_string());
            }
            return newest;
        }
        let name = record.get("name").and_then(Value::as_str).unwrap_or_default();
        if ["duration", "latency"].iter().any(|word| name.contains(word)) {
            record
                .iter_mut()
                .filter(|(key, _)| *key != "name")
                .for_each(|(_, value)| scale_values(value, factor));
        }
        0
    }
}

fn shift(value: &mut Value) {
    if let Some(time) = nanos(value).filter(|time| *time > 0) {
        *value = Value::String((time + SHIFT_NS).to_string());
    }
}

/// Shifts every text that is a time and nothing else.
fn shift_text(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(shift_text),
        Value::Object(members) => members.values_mut().for_each(shift_text),
        // `UnixNanos` would read plain numbers too, which may be anything here.
        Value::String(text) if text.as_bytes().get(10) == Some(&b'T') => {
            if let Ok(time) = text.parse::<UnixNanos>() {
                *value = serde_json::json!(time.plus(SHIFT_NS));
            }
        }
        _ => {}
    }
}

/// The same record of another trace.
fn copy(record: &Value) -> Value {
    let mut copy = record.clone();
    for key in ["traceId", "spanId", "parentSpanId"] {
        if let Some(Value::String(id)) = copy.get_mut(key)
            && let Some(first) = id.chars().next().and_then(|c| c.to_digit(16))
        {
            // Another first digit, each time the same, and never all zeros.
            let other = char::from_digit((first + 8) % 16, 16).unwrap_or('8');
            id.replace_range(..1, &other.to_string());
        }
    }
    copy
}

/// Values of data points of a metric of durations.
fn scale_values(value: &mut Value, factor: f64) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| scale_values(item, factor)),
        Value::Object(members) => {
            for (key, member) in members {
                match key.as_str() {
                    "asDouble" | "sum" | "min" | "max" => {
                        if let Some(number) = member.as_f64() {
                            *member = Value::from(number * factor);
                        }
                    }
                    "explicitBounds" => {
                        let bounds = member.as_array_mut().into_iter().flatten();
                        bounds.for_each(|b| *b = Value::from(b.as_f64().unwrap_or_default() * factor));
                    }
                    "gauge" | "histogram" | "dataPoints" => scale_values(member, factor),
                    _ => {}
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(at: u64, request: &Value) -> String {
        format!("{{\"at_unix_nano\":\"{at}\",\"signal\":\"traces\",\"request\":{request}}}\n")
    }

    fn span(trace: &str, start: u64, end: u64) -> Value {
        let (start, end) = (start.to_string(), end.to_string());
        serde_json::json!({"traceId": trace, "spanId": "0a", "startTimeUnixNano": start, "endTimeUnixNano": end})
    }

    fn spans(of: &[Value]) -> Value {
        serde_json::json!({"resourceSpans": [{"scopeSpans": [{"spans": of}]}]})
    }

    fn perturbed(text: &str, how: Perturbation) -> Vec<Value> {
        let lines = Perturbed::new(text.lines().map(|line| Ok(line.to_owned())), how);
        lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
    }

    fn of(line: &Value) -> &Vec<Value> {
        line["request"]["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap()
    }

    #[test]
    fn a_fifth_of_the_records_is_lost_and_the_same_ones_each_time() {
        let many: Vec<Value> = (0..1000).map(|i| span(&format!("{i:032x}"), 1, 2)).collect();
        let text = line(5, &spans(&many));
        let left = perturbed(&text, Perturbation::Lost);
        assert!((750..850).contains(&of(&left[0]).len()), "{}", of(&left[0]).len());
        assert_eq!(left, perturbed(&text, Perturbation::Lost));
        let kept = of(&perturbed(&text, Perturbation::Sampled)[0]).len();
        assert!((60..140).contains(&kept), "{kept}");
    }

    #[test]
    fn a_trace_is_kept_or_left_out_as_a_whole_and_doubled_with_other_ids() {
        let text = line(5, &spans(&vec![span("ab", 1, 2); 7]));
        let kept = of(&perturbed(&text, Perturbation::Sampled)[0]).len();
        assert!(kept == 0 || kept == 7);
        let doubled = perturbed(&text, Perturbation::Doubled);
        assert_eq!(of(&doubled[0]).iter().filter(|s| s["traceId"] == "2b").count(), 7);
    }

    #[test]
    fn durations_are_scaled_and_children_stay_within_their_parents() {
        let text = line(100, &spans(&[span("ab", 40, 60)])) + &line(100, &spans(&[span("ab", 20, 100)]));
        let slower = perturbed(&text, Perturbation::Slower);
        assert_eq!(of(&slower[0])[0], span("ab", 20, 60));
        assert_eq!(
            (of(&slower[1])[0].clone(), &slower[1]["at_unix_nano"]),
            (span("ab", 0, 140), &"140".into())
        );
        let faster = perturbed(&text, Perturbation::Faster);
        assert_eq!(
            (of(&faster[0])[0].clone(), of(&faster[1])[0].clone()),
            (span("ab", 50, 60), span("ab", 40, 80))
        );
    }

    #[test]
    fn what_is_delivered_again_or_late_is_the_same_within_the_bound() {
        let text: String = (0..50).map(|i| line(i * 100_000_000, &spans(&[span("ab", i, i + 1)]))).collect();
        let times = |lines: &[Value], of: u64| -> Vec<u64> {
            let same = lines.iter().filter(|l| l["request"] == spans(&[span("ab", of, of + 1)]));
            same.map(|l| nanos(&l["at_unix_nano"]).unwrap()).collect()
        };
        let again = perturbed(&text, Perturbation::Repeated);
        let late = perturbed(&text, Perturbation::Late);
        assert_eq!((again.len(), late.len()), (100, 50));
        for i in 0..50 {
            let at = i * 100_000_000;
            let (again, late) = (times(&again, i), times(&late, i));
            assert!(again.len() == 2 && again[0] == at && again[1] <= at + AGAIN_NS, "{again:?}");
            assert!(late.len() == 1 && (at..=at + SHUFFLE_NS).contains(&late[0]), "{late:?}");
        }
        assert!((0..50).any(|i| times(&late, i)[0] > i * 100_000_000 + SHUFFLE_NS / 2));
    }

    #[test]
    fn times_that_kubernetes_writes_as_text_are_shifted_with_the_rest() {
        let pod = serde_json::json!({"type": "MODIFIED", "object": {"metadata": {"name": "2026-01-01",
            "resourceVersion": "12345678901", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "status": {"conditions": [{"lastTransitionTime": "2026-01-01T02:00:00.123456+02:00"}],
                       "message": "2026-01-01T00:00:00Z it began"}}});
        let line = |signal: &str| {
            serde_json::json!({"at_unix_nano": "1767225600000000000", "signal": signal, "request": pod})
                .to_string()
        };
        let shifted = &perturbed(&line("k8s_object"), Perturbation::Shifted)[0];
        assert_eq!(shifted["at_unix_nano"], "1768225603700000000");
        let object = &shifted["request"]["object"];
        let (metadata, status) = (&object["metadata"], &object["status"]);
        assert_eq!(metadata["creationTimestamp"], "2026-01-12T13:46:43.700000000Z");
        assert_eq!(status["conditions"][0]["lastTransitionTime"], "2026-01-12T13:46:43.823456000Z");
        let kept = [&metadata["name"], &metadata["resourceVersion"], &status["message"]];
        assert_eq!(kept, ["2026-01-01", "12345678901", "2026-01-01T00:00:00Z it began"]);
        let same = &perturbed(&line("k8s_object"), Perturbation::Slower)[0];
        assert_eq!(same["request"], pod, "only all of them together");
    }

    #[test]
    fn everything_is_shifted_alike_and_what_is_shuffled_is_all_there() {
        let text: String = (0..50).map(|i| line(i * 100_000_000, &spans(&[span("ab", i, i + 1)]))).collect();
        let shifted = perturbed(&text, Perturbation::Shifted);
        assert_eq!(of(&shifted[3])[0], span("ab", SHIFT_NS + 3, SHIFT_NS + 4));
        let shuffled = perturbed(&text, Perturbation::Shuffled);
        let times: Vec<u64> = shuffled.iter().map(|l| nanos(&l["at_unix_nano"]).unwrap()).collect();
        let mut sorted = times.clone();
        sorted.sort_unstable();
        assert!(times != sorted && sorted.len() == 50);
        assert!(times.windows(2).all(|pair| pair[0] <= pair[1] + SHUFFLE_NS));
    }
}
