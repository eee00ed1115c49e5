//! Points of histograms, both kinds, as explicit buckets.

use opentelemetry_proto::tonic::metrics::v1::exponential_histogram_data_point::Buckets;
use opentelemetry_proto::tonic::metrics::v1::{ExponentialHistogramDataPoint, HistogramDataPoint};
use tapio_schemas::event::UnifiedEvent;
use tapio_schemas::ids::UnixNanos;
use tapio_schemas::payload::{MetricData, MetricKind};

use super::metric::{Series, is_valueless, mean};
use super::{BUCKETS_MAX, Reason};

/// # Errors
/// When buckets and bounds do not fit.
pub fn explicit(
    series: &Series<'_>,
    cumulative: bool,
    point: HistogramDataPoint,
    trimmed: &mut u64,
) -> Result<Option<UnifiedEvent>, Reason> {
    if is_valueless(point.flags) {
        return Ok(None);
    }
    let (bounds, buckets) = (point.explicit_bounds, point.bucket_counts);
    // No buckets at all is a histogram of count and sum only.
    let fits = buckets.is_empty() && bounds.is_empty() || buckets.len() == bounds.len() + 1;
    let ascending = bounds.windows(2).all(|pair| pair[0] < pair[1]) && bounds.iter().all(|b| b.is_finite());
    if !fits || !ascending || buckets.len() > BUCKETS_MAX {
        return Err(Reason::Buckets);
    }
    let data = MetricData {
        kind: MetricKind::Histogram,
        monotonic: cumulative,
        value: mean(point.sum, point.count),
        count: point.count,
        start: UnixNanos(point.start_time_unix_nano),
        bounds,
        buckets,
        ..series.shape()
    };
    series.event(point.time_unix_nano, point.attributes, data, trimmed)
}

/// Base-2 exponential buckets as explicit ones: bucket `i` of scale `s` is `(b^i, b^(i+1)]` with `b = 2^(2^-s)`
/// (OpenTelemetry metrics data model). Negative values are put with the zeros into the first bucket.
///
/// # Errors
/// When there are too many buckets, or bounds beyond a double.
pub fn exponential(
    series: &Series<'_>,
    cumulative: bool,
    point: ExponentialHistogramDataPoint,
    trimmed: &mut u64,
) -> Result<Option<UnifiedEvent>, Reason> {
    if is_valueless(point.flags) {
        return Ok(None);
    }
    // Saturating: the counts are whatever the sender says.
    let negative = point.negative.iter().flat_map(|b| &b.bucket_counts);
    let below = negative.fold(point.zero_count, |sum, count| sum.saturating_add(*count));
    let (bounds, buckets) =
        positive(point.positive.unwrap_or_default(), point.scale, below).ok_or(Reason::Buckets)?;
    let data = MetricData {
        kind: MetricKind::Histogram,
        monotonic: cumulative,
        value: mean(point.sum, point.count),
        count: point.count,
        start: UnixNanos(point.start_time_unix_nano),
        bounds,
        buckets,
        ..series.shape()
    };
    series.event(point.time_unix_nano, point.attributes, data, trimmed)
}

/// The bounds `b^offset … b^(offset+n)` and the counts: what is at most `b^offset`, the n buckets, none above.
fn positive(positive: Buckets, scale: i32, below: u64) -> Option<(Vec<f64>, Vec<u64>)> {
    let counts = positive.bucket_counts;
    if counts.is_empty() {
        return Some((Vec::new(), Vec::new()));
    }
    if counts.len() + 2 > BUCKETS_MAX {
        return None;
    }
    let width = 2f64.powi(scale.saturating_neg());
    let bound = |at: usize| (width * (f64::from(positive.offset) + at as f64)).exp2();
    let bounds: Vec<f64> = (0..=counts.len()).map(bound).collect();
    let ascending = bounds.windows(2).all(|pair| pair[0] < pair[1]) && bounds.iter().all(|b| b.is_finite());
    if !ascending {
        return None;
    }
    let buckets = std::iter::once(below).chain(counts).chain(std::iter::once(0)).collect();
    Some((bounds, buckets))
}
