//! The points of one metric as events.

use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, DataPointFlags, Metric, NumberDataPoint, SummaryDataPoint,
};
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::kind::EventKind;
use tapio_schemas::payload::{MetricData, MetricKind, Payload};

use super::attributes::{self, identity};
use super::resource::Origin;
use super::{ATTRIBUTE_BYTES_MAX, Output, Reason, Scope, event_of, histogram};
use crate::convert::{Seed, cut};

/// What all points of a metric share.
pub struct Series<'a> {
    scope: &'a Scope,
    origin: &'a Origin,
    seed: Seed,
    shape: MetricData,
}

/// Adds one event per point. `monotonic` is true for histograms with cumulative temporality, as for cumulative sums.
pub fn convert(scope: &Scope, origin: &Origin, library: &str, metric: Metric, out: &mut Output<'_>) {
    let named = !metric.name.is_empty();
    let (Some(data), true) = (metric.data, named) else {
        return out.add(|_| Err(Reason::NoMetric));
    };
    let shape = MetricData {
        limit: limit(&metric.name, &metric.unit),
        name: cut(&metric.name, ATTRIBUTE_BYTES_MAX),
        unit: cut(&metric.unit, ATTRIBUTE_BYTES_MAX),
        ..MetricData::default()
    };
    let seed = Seed::new("metric").number(origin.identity).text(library).text(&metric.name);
    let series = Series { scope, origin, seed, shape };
    match data {
        Data::Gauge(gauge) => {
            for point in gauge.data_points {
                out.add(|trimmed| series.number(MetricKind::Gauge, false, point, trimmed));
            }
        }
        Data::Sum(sum) => {
            let delta = sum.aggregation_temporality() == AggregationTemporality::Delta;
            let kind = if delta { MetricKind::DeltaSum } else { MetricKind::CumulativeSum };
            for point in sum.data_points {
                out.add(|trimmed| series.number(kind, sum.is_monotonic, point, trimmed));
            }
        }
        Data::Histogram(histogram) => {
            let cumulative = histogram.aggregation_temporality() == AggregationTemporality::Cumulative;
            for point in histogram.data_points {
                out.add(|trimmed| histogram::explicit(&series, cumulative, point, trimmed));
            }
        }
        Data::ExponentialHistogram(histogram) => {
            let cumulative = histogram.aggregation_temporality() == AggregationTemporality::Cumulative;
            for point in histogram.data_points {
                out.add(|trimmed| histogram::exponential(&series, cumulative, point, trimmed));
            }
        }
        Data::Summary(summary) => {
            for point in summary.data_points {
                out.add(|trimmed| series.summary(point, trimmed));
            }
        }
    }
}

/// A share of something has the whole as its limit.
fn limit(name: &str, unit: &str) -> f64 {
    if unit == "1" && name.ends_with("utilization") { 1.0 } else { 0.0 }
}

/// Whether a point says that there is no value (a staleness marker).
pub fn is_valueless(flags: u32) -> bool {
    flags & DataPointFlags::NoRecordedValueMask as u32 != 0
}

impl Series<'_> {
    fn number(
        &self,
        kind: MetricKind,
        monotonic: bool,
        point: NumberDataPoint,
        trimmed: &mut u64,
    ) -> Result<Option<UnifiedEvent>, Reason> {
        if is_valueless(point.flags) {
            return Ok(None);
        }
        let value = match point.value.ok_or(Reason::NotFinite)? {
            Value::AsDouble(value) => value,
            Value::AsInt(value) => value as f64,
        };
        let start = UnixNanos(point.start_time_unix_nano);
        let data = MetricData { kind, monotonic, value, start, ..self.shape.clone() };
        self.event(point.time_unix_nano, point.attributes, data, trimmed)
    }

    fn summary(&self, point: SummaryDataPoint, trimmed: &mut u64) -> Result<Option<UnifiedEvent>, Reason> {
        if is_valueless(point.flags) {
            return Ok(None);
        }
        let data = MetricData {
            kind: MetricKind::Summary,
            monotonic: true,
            value: mean(Some(point.sum), point.count),
            count: point.count,
            start: UnixNanos(point.start_time_unix_nano),
            ..self.shape.clone()
        };
        self.event(point.time_unix_nano, point.attributes, data, trimmed)
    }

    /// What a point of this metric begins with.
    pub fn shape(&self) -> MetricData {
        self.shape.clone()
    }

    /// The event of a point.
    ///
    /// # Errors
    /// When it has no time or its value is not finite.
    pub fn event(
        &self,
        time_unix_nano: u64,
        attributes: Vec<KeyValue>,
        data: MetricData,
        trimmed: &mut u64,
    ) -> Result<Option<UnifiedEvent>, Reason> {
        if time_unix_nano == 0 {
            return Err(Reason::NoTime);
        }
        if !data.value.is_finite() {
            return Err(Reason::NotFinite);
        }
        let at = UnixNanos(time_unix_nano);
        let id = self.seed.clone().number(identity(&attributes)).number(at.0.into()).event(at);
        let mut kept = attributes::convert(attributes, trimmed);
        kept.extend(self.origin.extra.iter().cloned());
        Ok(Some(UnifiedEvent {
            id,
            kind: EventKind::Metric,
            payload: Payload::Metric(Box::new(MetricData { attributes: kept, ..data })),
            ..event_of(self.scope, self.origin, at)
        }))
    }
}

/// Mean of a distribution; zero when it is empty or has no sum.
pub fn mean(sum: Option<f64>, count: u64) -> f64 {
    if count == 0 { 0.0 } else { sum.unwrap_or(0.0) / count as f64 }
}
