//! Export of Tapio's own traces and metrics over OTLP/gRPC.

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::MeterProvider;
use opentelemetry_otlp::{MetricExporter, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::trace::SdkTracerProvider;

use super::otlp_bridge::Bridge;
use super::{Metrics, TelemetryError};

/// The bridge looks for new families and values this many times per export.
const REFRESHES_PER_EXPORT: u32 = 2;

/// Both exporters and the task that feeds the metrics one.
#[derive(Debug)]
pub(super) struct Exporters {
    tracer_provider: SdkTracerProvider,
    meter_provider: SdkMeterProvider,
    bridge: Bridge,
    refresh: tokio::task::JoinHandle<()>,
}

impl Exporters {
    pub(super) fn start(
        endpoint: &str,
        interval: Duration,
        service: &'static str,
        metrics: &Metrics,
    ) -> Result<Self, TelemetryError> {
        let failed = |error: opentelemetry_otlp::ExporterBuildError| TelemetryError::Otlp {
            endpoint: endpoint.to_owned(),
            message: error.to_string(),
        };
        let resource = Resource::builder()
            .with_service_name(service)
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let spans = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build().map_err(failed)?;
        let series =
            MetricExporter::builder().with_tonic().with_endpoint(endpoint).build().map_err(failed)?;
        let tracer_provider =
            SdkTracerProvider::builder().with_batch_exporter(spans).with_resource(resource.clone()).build();
        let reader = PeriodicReader::builder(series).with_interval(interval).build();
        let meter_provider = SdkMeterProvider::builder().with_reader(reader).with_resource(resource).build();
        let bridge = Bridge::new(meter_provider.meter("tapio"), metrics.clone());
        let refresh = tokio::spawn(refresh(bridge.clone(), interval / REFRESHES_PER_EXPORT));
        Ok(Self { tracer_provider, meter_provider, bridge, refresh })
    }

    pub(super) fn tracer_provider(&self) -> &SdkTracerProvider {
        &self.tracer_provider
    }

    pub(super) fn shutdown(self) {
        self.refresh.abort();
        self.bridge.refresh();
        if let Err(error) = self.tracer_provider.shutdown() {
            tracing::warn!(%error, "the last traces were not exported");
        }
        if let Err(error) = self.meter_provider.shutdown() {
            tracing::warn!(%error, "the last metrics were not exported");
        }
    }
}

async fn refresh(bridge: Bridge, period: Duration) {
    let mut ticks = tokio::time::interval(period.max(Duration::from_millis(1)));
    loop {
        ticks.tick().await;
        bridge.refresh();
    }
}
