//! OTLP over gRPC.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::http::{Request, Response};
use futures::future::BoxFuture;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use tapio_runtime::shutdown::Shutdown;
use tonic::body::Body;
use tonic::codec::CompressionEncoding;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::body::READ_TIMEOUT;
use super::connections::{HEAD_TIMEOUT, Limited};
use super::reception::{ExportRequest, Protocol, Reception, Unavailable};

/// Requests of one connection that are under way at once; further ones wait in the client.
const STREAMS_MAX: u32 = 64;

/// Serves until `shutdown`, then finishes the open requests.
///
/// # Errors
/// When the server fails as a whole.
pub async fn serve(
    listener: Limited,
    reception: Arc<Reception>,
    message_max: usize,
    shutdown: Shutdown,
) -> Result<(), tonic::transport::Error> {
    let services = Services(Arc::clone(&reception));
    tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        // Who does not answer is gone, and holds a place.
        .http2_keepalive_interval(Some(HEAD_TIMEOUT))
        .http2_keepalive_timeout(Some(READ_TIMEOUT))
        .layer(GateLayer(reception))
        .add_service(
            TraceServiceServer::new(services.clone())
                .accept_compressed(CompressionEncoding::Gzip)
                .max_decoding_message_size(message_max),
        )
        .add_service(
            MetricsServiceServer::new(services.clone())
                .accept_compressed(CompressionEncoding::Gzip)
                .max_decoding_message_size(message_max),
        )
        .add_service(
            LogsServiceServer::new(services)
                .accept_compressed(CompressionEncoding::Gzip)
                .max_decoding_message_size(message_max),
        )
        .serve_with_incoming_shutdown(listener.into_stream(), async move { shutdown.wait().await })
        .await
}

#[derive(Clone)]
struct Services(Arc<Reception>);

impl Services {
    fn export<R: ExportRequest>(
        &self,
        request: tonic::Request<R>,
    ) -> Result<tonic::Response<R::Response>, Status> {
        let taken = self.0.take(Protocol::Grpc, request.into_inner());
        taken.map(tonic::Response::new).map_err(unavailable)
    }
}

#[tonic::async_trait]
impl TraceService for Services {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, Status> {
        Services::export(self, request)
    }
}

#[tonic::async_trait]
impl MetricsService for Services {
    async fn export(
        &self,
        request: tonic::Request<ExportMetricsServiceRequest>,
    ) -> Result<tonic::Response<ExportMetricsServiceResponse>, Status> {
        Services::export(self, request)
    }
}

#[tonic::async_trait]
impl LogsService for Services {
    async fn export(
        &self,
        request: tonic::Request<ExportLogsServiceRequest>,
    ) -> Result<tonic::Response<ExportLogsServiceResponse>, Status> {
        Services::export(self, request)
    }
}

fn unavailable(reason: Unavailable) -> Status {
    Status::unavailable(reason.to_string())
}

/// Around the services: requests take turns before their messages are read, and errors of reading a message
/// get the codes that OTLP clients act upon.
#[derive(Clone)]
struct GateLayer(Arc<Reception>);

impl<S> Layer<S> for GateLayer {
    type Service = Gate<S>;
    fn layer(&self, inner: S) -> Gate<S> {
        Gate { inner, reception: Arc::clone(&self.0) }
    }
}

#[derive(Clone)]
struct Gate<S> {
    inner: S,
    reception: Arc<Reception>,
}

impl<S> Service<Request<Body>> for Gate<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The clone is not ready; the value that was polled is.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        let reception = Arc::clone(&self.reception);
        Box::pin(async move {
            let signal = signal_of(request.uri().path());
            let _turn = match reception.turn().await {
                Ok(turn) => turn,
                Err(reason) => {
                    reception.count_request(Protocol::Grpc, signal, "busy");
                    return Ok(unavailable(reason).into_http());
                }
            };
            let response = inner.call(request).await?;
            let Some(status) = unreadable(&response) else { return Ok(response) };
            reception.count_request(Protocol::Grpc, signal, outcome_of(status.code()));
            Ok(status.into_http())
        })
    }
}

fn signal_of(path: &str) -> &'static str {
    match path.rsplit('.').next() {
        Some("TraceService/Export") => "traces",
        Some("MetricsService/Export") => "metrics",
        Some("LogsService/Export") => "logs",
        _ => "other",
    }
}

fn outcome_of(code: Code) -> &'static str {
    if code == Code::ResourceExhausted { "too_large" } else { "malformed" }
}

/// The status of a request whose message could not be read, with the code that says whose fault it is: the
/// transport reports these as internal errors, which some clients retry for ever.
fn unreadable(response: &Response<Body>) -> Option<Status> {
    let status = Status::from_header_map(response.headers())?;
    let code = match status.code() {
        Code::OutOfRange | Code::ResourceExhausted => Code::ResourceExhausted,
        // The services themselves never answer with it.
        Code::Internal => Code::InvalidArgument,
        _ => return None,
    };
    Some(Status::new(code, status.message()))
}
