//! OTLP/JSON, as exporters and collectors really write it.
//!
//! The generated types read what their own serializer writes. The protobuf JSON mapping allows more: names of
//! enum values, 32-bit numbers as text, `null` for a default, empty lists left out, `NaN` and `Infinity`, original
//! field names, unknown fields. A request that does not read, or reads with holes, is mended and read again;
//! most need no mending and pay nothing.

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Not an OTLP/JSON request.
#[derive(Debug, thiserror::Error)]
#[error("not an OTLP/JSON {signal} request: {source}")]
pub struct JsonError {
    signal: &'static str,
    source: serde_json::Error,
}

/// An export request that can be read from JSON.
pub trait FromOtlpJson: DeserializeOwned {
    /// What it carries, for messages.
    const SIGNAL: &'static str;

    /// Whether something may have been there that was not read: the generated code turns an unreadable member
    /// of a `oneof` into "none" instead of an error, and skips names it does not know, as the original ones.
    fn has_holes(&self) -> bool;
}

impl FromOtlpJson for ExportTraceServiceRequest {
    const SIGNAL: &'static str = "traces";

    fn has_holes(&self) -> bool {
        self.resource_spans.is_empty()
    }
}

impl FromOtlpJson for ExportLogsServiceRequest {
    const SIGNAL: &'static str = "logs";

    fn has_holes(&self) -> bool {
        self.resource_logs.is_empty()
    }
}

impl FromOtlpJson for ExportMetricsServiceRequest {
    const SIGNAL: &'static str = "metrics";

    fn has_holes(&self) -> bool {
        let scopes = self.resource_metrics.iter().flat_map(|r| &r.scope_metrics);
        self.resource_metrics.is_empty()
            || scopes.flat_map(|s| &s.metrics).any(|metric| match &metric.data {
                None => true,
                Some(Data::Gauge(gauge)) => gauge.data_points.iter().any(|p| p.value.is_none()),
                Some(Data::Sum(sum)) => sum.data_points.iter().any(|p| p.value.is_none()),
                Some(_) => false,
            })
    }
}

/// Reads a request.
///
/// # Errors
/// When it is not JSON, or not of that request's shape even after mending.
pub fn from_slice<T: FromOtlpJson>(json: &[u8]) -> Result<T, JsonError> {
    if let Ok(request) = serde_json::from_slice::<T>(json)
        && !request.has_holes()
    {
        return Ok(request);
    }
    let value = serde_json::from_slice(json).map_err(|source| JsonError { signal: T::SIGNAL, source })?;
    mend_and_read(value)
}

/// Reads a request that is parsed already (a line of a recording).
///
/// # Errors
/// As [`from_slice`].
pub fn from_value<T: FromOtlpJson>(value: Value) -> Result<T, JsonError> {
    if let Ok(request) = T::deserialize(&value)
        && !request.has_holes()
    {
        return Ok(request);
    }
    mend_and_read(value)
}

fn mend_and_read<T: FromOtlpJson>(mut value: Value) -> Result<T, JsonError> {
    mend(&mut value);
    serde_json::from_value(value).map_err(|source| JsonError { signal: T::SIGNAL, source })
}

/// Members of `AnyValue`; the generated reader stumbles over any other.
const ANY_VALUE: [&str; 7] =
    ["stringValue", "boolValue", "intValue", "doubleValue", "arrayValue", "kvlistValue", "bytesValue"];

/// Rewrites what the mapping allows and the generated types do not read. Recursion is bounded by the parser's limit.
fn mend(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(mend),
        Value::Object(fields) => mend_object(fields),
        _ => {}
    }
}

fn mend_object(fields: &mut Map<String, Value>) {
    let old = std::mem::take(fields);
    for (name, mut value) in old {
        let name = if name.contains('_') { camel_case(&name) } else { name };
        // References to entities name attributes that are read anyway.
        if value.is_null() || name == "entityRefs" {
            continue;
        }
        mend_field(&name, &mut value);
        mend(&mut value);
        match special_number(&name, &value) {
            Special::No => {
                fields.insert(name, value);
            }
            Special::AsText => {
                fields.insert("stringValue".to_owned(), value);
            }
            // No recorded value: bit 0 of the flags of a point.
            Special::Valueless => {
                fields.insert("flags".to_owned(), Value::from(1));
            }
            Special::LeaveOut => {}
        }
    }
}

fn mend_field(name: &str, value: &mut Value) {
    match name {
        "kind" | "code" | "severityNumber" | "aggregationTemporality" => number_of_name(value),
        "flags" | "scale" | "offset" => number_of_text(value),
        _ if name.starts_with("dropped") => number_of_text(value),
        "explicitBounds" => mend_bounds(value),
        "asDouble" | "sum" | "min" | "max" | "quantile" | "doubleValue" | "zeroThreshold" => {
            finite_of_text(value)
        }
        "value" | "body" => keep_known_members(value),
        "values" => value.as_array_mut().into_iter().flatten().for_each(keep_known_members),
        "arrayValue" | "kvlistValue" => {
            if let Value::Object(list) = value {
                list.entry("values").or_insert_with(|| Value::Array(Vec::new()));
            }
        }
        _ => {}
    }
}

enum Special {
    No,
    AsText,
    Valueless,
    LeaveOut,
}

/// JSON numbers cannot be NaN or infinite: such text is left after [`finite_of_text`].
fn special_number(name: &str, value: &Value) -> Special {
    match (name, value.is_string()) {
        ("doubleValue", true) => Special::AsText,
        ("asDouble", true) => Special::Valueless,
        ("sum" | "min" | "max" | "zeroThreshold", true) => Special::LeaveOut,
        _ => Special::No,
    }
}

/// `SPAN_KIND_SERVER` → 2. An unknown name stays, and fails with its text in the message.
fn number_of_name(value: &mut Value) {
    use opentelemetry_proto::tonic::logs::v1::SeverityNumber;
    use opentelemetry_proto::tonic::metrics::v1::AggregationTemporality;
    use opentelemetry_proto::tonic::trace::v1::{span::SpanKind, status::StatusCode};
    number_of_text(value);
    let Some(name) = value.as_str() else { return };
    let number = SpanKind::from_str_name(name)
        .map(|v| v as i32)
        .or_else(|| StatusCode::from_str_name(name).map(|v| v as i32))
        .or_else(|| SeverityNumber::from_str_name(name).map(|v| v as i32))
        .or_else(|| AggregationTemporality::from_str_name(name).map(|v| v as i32));
    if let Some(number) = number {
        *value = Value::from(number);
    }
}

fn number_of_text(value: &mut Value) {
    if let Some(number) = value.as_str().and_then(|text| text.parse::<i64>().ok()) {
        *value = Value::from(number);
    }
}

fn finite_of_text(value: &mut Value) {
    let number = value.as_str().and_then(|text| text.parse::<f64>().ok()).filter(|n| n.is_finite());
    if let Some(number) = number {
        *value = Value::from(number);
    }
}

/// The last bound may be written as infinity, which is implied.
fn mend_bounds(value: &mut Value) {
    let Value::Array(bounds) = value else { return };
    bounds.iter_mut().for_each(finite_of_text);
    if bounds.last().is_some_and(Value::is_string) {
        bounds.pop();
    }
}

fn keep_known_members(value: &mut Value) {
    let Value::Object(fields) = value else { return };
    // Elements of a list of key and value are no values themselves.
    if !fields.contains_key("key") {
        fields.retain(|name, _| ANY_VALUE.contains(&name.as_str()) || name.contains('_'));
    }
}

fn camel_case(name: &str) -> String {
    let mut upper = false;
    let mut out = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '_' => upper = true,
            c if upper => {
                upper = false;
                out.extend(c.to_uppercase());
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
    use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;

    fn metrics(metric: &str) -> ExportMetricsServiceRequest {
        let json = format!(r#"{{"resourceMetrics":[{{"scopeMetrics":[{{"metrics":[{metric}]}}]}}]}}"#);
        from_slice(json.as_bytes()).unwrap()
    }

    fn data(request: ExportMetricsServiceRequest) -> Data {
        request.resource_metrics[0].scope_metrics[0].metrics[0].data.clone().expect("data")
    }

    #[test]
    fn enum_names_and_numbers_read_alike() {
        for kind in ["2", "\"2\"", "\"SPAN_KIND_SERVER\""] {
            let json = format!(
                r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{
                "traceId":"5B8EFFF798038103D269B633813FC60C","spanId":"eee19b7ec3c1b174","name":"x","kind":{kind},
                "startTimeUnixNano":"1544712660000000000","endTimeUnixNano":1544712661000000000,
                "status":{{"code":"STATUS_CODE_ERROR"}},"unknownField":{{"a":[1]}}}}]}}]}}]}}"#
            );
            let request: ExportTraceServiceRequest = from_slice(json.as_bytes()).unwrap();
            let span = &request.resource_spans[0].scope_spans[0].spans[0];
            assert_eq!((span.kind, span.status.as_ref().unwrap().code), (2, 2), "{kind}");
            assert_eq!(span.trace_id[..2], [0x5b, 0x8e]);
            assert_eq!(span.end_time_unix_nano, 1_544_712_661_000_000_000);
        }
    }

    #[test]
    fn a_sum_with_a_temporality_by_name_is_not_lost() {
        let sum = r#"{"name":"n","sum":{"aggregationTemporality":"AGGREGATION_TEMPORALITY_CUMULATIVE",
            "isMonotonic":true,"dataPoints":[{"timeUnixNano":"5","asInt":"7"}]}}"#;
        let Data::Sum(sum) = data(metrics(sum)) else { panic!("not a sum") };
        assert_eq!((sum.aggregation_temporality, sum.data_points[0].value), (2, Some(Number::AsInt(7))));
    }

    #[test]
    fn not_a_number_is_no_value_and_numbers_as_text_are_numbers() {
        let json = r#"{"resource_metrics":[{"scope_metrics":[{"metrics":[{"name":"n","gauge":{"data_points":[
            {"time_unix_nano":"5","as_double":"NaN"},{"time_unix_nano":"6","as_double":"1.5"},
            {"time_unix_nano":"7","as_double":3}]}}]}]}]}"#;
        let Data::Gauge(gauge) = data(from_slice(json.as_bytes()).unwrap()) else { panic!("not a gauge") };
        assert_eq!((gauge.data_points[0].flags, gauge.data_points[0].value), (1, None));
        assert_eq!(gauge.data_points[1].value, Some(Number::AsDouble(1.5)));
        assert_eq!(gauge.data_points[2].value, Some(Number::AsDouble(3.0)));
    }

    #[test]
    fn histograms_with_an_infinite_last_bound() {
        let histogram = r#"{"name":"n","histogram":{"aggregationTemporality":2,"dataPoints":[{"timeUnixNano":"5",
            "count":"3","sum":"NaN","bucketCounts":["1",2],"explicitBounds":["0.5","Infinity"],"min":null}]}}"#;
        let Data::Histogram(histogram) = data(metrics(histogram)) else { panic!("not a histogram") };
        let point = &histogram.data_points[0];
        assert_eq!(
            (point.sum, &point.explicit_bounds[..], &point.bucket_counts[..]),
            (None, &[0.5][..], &[1, 2][..])
        );
    }

    #[test]
    fn empty_lists_unknown_values_and_nulls_in_attributes() {
        let json = r#"{"resourceLogs":[{"resource":{"entityRefs":[{"type":"service"}],"attributes":null},"scopeLogs":[
            {"logRecords":[{"timeUnixNano":"1","severityNumber":"SEVERITY_NUMBER_ERROR2","body":{"newValue":1},
            "attributes":[{"key":"a","value":{"arrayValue":{}}},{"key":"b","value":{"doubleValue":"NaN"}},
            {"key":"c","value":{"kvlistValue":{"values":[{"key":"d","value":{"intValue":"9"}}]}}}]}]}]}]}"#;
        let request: ExportLogsServiceRequest = from_slice(json.as_bytes()).unwrap();
        let record = &request.resource_logs[0].scope_logs[0].log_records[0];
        assert_eq!(record.severity_number, 18);
        let value = |at: usize| record.attributes[at].value.clone().unwrap().value;
        assert!(matches!(value(0), Some(Any::ArrayValue(array)) if array.values.is_empty()));
        assert_eq!(value(1), Some(Any::StringValue("NaN".into())));
        assert!(matches!(value(2), Some(Any::KvlistValue(list)) if list.values.len() == 1));
    }

    #[test]
    fn what_is_no_request_is_an_error_that_says_so() {
        for json in [
            "",
            "{",
            "[1]",
            r#"{"resourceSpans":7}"#,
            r#"{"resourceSpans":[{"scopeSpans":[{"spans":[{"kind":"X"}]}]}]}"#,
        ] {
            let error = from_slice::<ExportTraceServiceRequest>(json.as_bytes()).unwrap_err();
            assert!(error.to_string().starts_with("not an OTLP/JSON traces request: "), "{error}");
        }
        let zero_length = r#"{"resourceSpans":[{"scopeSpans":[{"spans":[{"traceId":"xyz"}]}]}]}"#;
        assert!(from_slice::<ExportTraceServiceRequest>(zero_length.as_bytes()).is_err());
    }
}
