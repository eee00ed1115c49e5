use std::net::SocketAddr;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::metrics::v1 as metrics_rpc;
use opentelemetry_proto::tonic::collector::trace::v1 as trace_rpc;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::metrics::v1::{Metric, metric::Data, number_data_point};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use tapio_runtime::clock::ManualClock;
use tapio_runtime::config::HumanDuration;
use tapio_runtime::health::Health;
use tapio_runtime::shutdown::Shutdown;
use tapio_runtime::telemetry::{self, Metrics, TelemetryConfig, TelemetryError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use crate::in_time;

/// One request over a plain socket; gives the status line and the whole answer.
async fn get(addr: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer)
}

#[tokio::test]
async fn metrics_and_health_are_served_until_the_shutdown() {
    let (clock, metrics, shutdown) = (ManualClock::new(0), Metrics::new(), Shutdown::new());
    let health = Health::new(clock.shared());
    let served: Counter = metrics.shared("served", "Things served");
    served.inc_by(4);
    let server = telemetry::serve("127.0.0.1:0", metrics, health.clone(), shutdown.clone());
    let server = server.await.unwrap();
    let addr = server.addr();
    assert_ne!(addr.port(), 0);

    let (status, text) = get(addr, "/metrics").await;
    assert!(status == 200 && text.contains("application/openmetrics-text"), "{text}");
    assert!(text.contains("tapio_served_total 4") && text.trim_end().ends_with("# EOF"), "{text}");

    let worker = health.register("worker", Some(Duration::from_secs(1)));
    assert_eq!(get(addr, "/readyz").await.0, 503, "it has not moved yet");
    worker.tick();
    assert_eq!(get(addr, "/readyz").await.0, 200);
    clock.advance(Duration::from_secs(2));
    let (status, text) = get(addr, "/readyz").await;
    assert!(status == 503 && text.contains(r#""state":"stale""#), "{text}");
    assert_eq!(get(addr, "/livez").await.0, 200);
    worker.fail("gave up");
    let (status, text) = get(addr, "/livez").await;
    assert!(status == 503 && text.contains("gave up"), "{text}");
    assert_eq!(get(addr, "/other").await.0, 404);

    let address = addr.to_string();
    let taken = telemetry::serve(&address, Metrics::new(), health.clone(), Shutdown::new());
    let error = taken.await.unwrap_err();
    assert!(matches!(error, TelemetryError::Listen { address, .. } if address == addr), "{error}");
    let nonsense = telemetry::serve("nonsense", Metrics::new(), health, Shutdown::new()).await;
    assert!(matches!(nonsense, Err(TelemetryError::ListenAddress { .. })));

    shutdown.trigger();
    in_time(server.join()).await;
    assert!(tokio::net::TcpStream::connect(addr).await.is_err());
}

/// An OTLP/gRPC receiver that hands over what it gets.
#[derive(Clone)]
struct Receiver {
    traces: mpsc::UnboundedSender<trace_rpc::ExportTraceServiceRequest>,
    metrics: mpsc::UnboundedSender<metrics_rpc::ExportMetricsServiceRequest>,
}

#[tonic::async_trait]
impl trace_rpc::trace_service_server::TraceService for Receiver {
    async fn export(
        &self,
        request: Request<trace_rpc::ExportTraceServiceRequest>,
    ) -> Result<Response<trace_rpc::ExportTraceServiceResponse>, Status> {
        self.traces.send(request.into_inner()).unwrap();
        Ok(Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl metrics_rpc::metrics_service_server::MetricsService for Receiver {
    async fn export(
        &self,
        request: Request<metrics_rpc::ExportMetricsServiceRequest>,
    ) -> Result<Response<metrics_rpc::ExportMetricsServiceResponse>, Status> {
        self.metrics.send(request.into_inner()).unwrap();
        Ok(Response::new(Default::default()))
    }
}

fn value_of(metric: &Metric) -> f64 {
    let points = match metric.data.as_ref().unwrap() {
        Data::Gauge(gauge) => &gauge.data_points,
        Data::Sum(sum) => &sum.data_points,
        other => panic!("{other:?}"),
    };
    match points[0].value.as_ref().unwrap() {
        number_data_point::Value::AsDouble(value) => *value,
        number_data_point::Value::AsInt(value) => *value as f64,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_traces_and_metrics_are_exported() {
    let (traces, mut spans) = mpsc::unbounded_channel();
    let (series, mut exports) = mpsc::unbounded_channel();
    let receiver = Receiver { traces, metrics: series };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let serving = tonic::transport::Server::builder()
        .add_service(trace_rpc::trace_service_server::TraceServiceServer::new(receiver.clone()))
        .add_service(metrics_rpc::metrics_service_server::MetricsServiceServer::new(receiver))
        .serve_with_incoming(incoming);
    tokio::spawn(serving);

    let metrics = Metrics::new();
    let depth: Gauge = metrics.shared("depth", "Depth");
    depth.set(7);
    let config = TelemetryConfig {
        otlp_endpoint: Some(endpoint),
        otlp_interval: HumanDuration::from_secs(3_600),
        ..TelemetryConfig::default()
    };
    let guard = telemetry::init(&config, "tapio-test", &metrics).unwrap();
    assert!(matches!(
        telemetry::init(&TelemetryConfig::default(), "again", &metrics),
        Err(TelemetryError::AlreadyInitialised)
    ));
    tracing::info_span!(target: "tapio_test", "shard", shard = 5).in_scope(|| {});
    tracing::info_span!(target: "h2", "of the transport").in_scope(|| {});
    // Registered and counted after the start: the last export has it.
    let late: Counter = metrics.shared("late", "Late");
    late.inc_by(3);
    tokio::task::spawn_blocking(move || guard.shutdown()).await.unwrap();

    let request = in_time(spans.recv()).await.unwrap();
    let resource = request.resource_spans[0].resource.as_ref().unwrap();
    let service = resource.attributes.iter().find(|pair| pair.key == "service.name").unwrap();
    let name = service.value.as_ref().unwrap().value.as_ref().unwrap();
    assert_eq!(*name, Value::StringValue("tapio-test".into()));
    let names: Vec<_> = request.resource_spans[0]
        .scope_spans
        .iter()
        .flat_map(|scope| &scope.spans)
        .map(|span| span.name.as_str())
        .collect();
    assert_eq!(names, ["shard"], "own spans only");

    let request = in_time(exports.recv()).await.unwrap();
    let metrics: Vec<_> =
        request.resource_metrics[0].scope_metrics.iter().flat_map(|scope| &scope.metrics).collect();
    let find = |name: &str| *metrics.iter().find(|metric| metric.name == name).unwrap();
    assert_eq!(value_of(find("tapio_depth")), 7.0);
    assert_eq!(value_of(find("tapio_late_total")), 3.0);
    assert!(matches!(&find("tapio_late_total").data, Some(Data::Sum(sum)) if sum.is_monotonic));
}
