//! OTLP over HTTP: protobuf and JSON.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, Response, StatusCode};
use axum::routing::post;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use serde_json::json;
use tapio_runtime::clock::SharedClock;
use tapio_runtime::shutdown::Shutdown;
use tonic::Code;

use super::body::{self, BodyError, Encoding};
use super::connections::Limited;
use super::convert::Rejected;
use super::json;
use super::reception::{ExportRequest, Protocol, Reception};

/// What the routes share.
pub struct Http {
    /// Where requests go.
    pub reception: Arc<Reception>,
    /// Most bytes of a request.
    pub message_max: usize,
    /// When to come back.
    pub retry_after: Duration,
    /// For the time a body may take.
    pub clock: SharedClock,
}

/// `google.rpc.Status`, the body of errors (details are left out).
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

/// An answer that is not a success.
struct Failure {
    status: StatusCode,
    outcome: &'static str,
    message: String,
}

/// Serves until `shutdown`, then finishes the open requests.
pub async fn serve(listener: Limited, http: Http, shutdown: Shutdown) {
    let routes = Router::new()
        .route("/v1/traces", post(export::<ExportTraceServiceRequest>))
        .route("/v1/metrics", post(export::<ExportMetricsServiceRequest>))
        .route("/v1/logs", post(export::<ExportLogsServiceRequest>))
        .with_state(Arc::new(http));
    listener.serve(routes, shutdown).await;
}

async fn export<R: ExportRequest>(State(http): State<Arc<Http>>, request: Request) -> Response<Body> {
    let Some(encoding) = Encoding::of(request.headers()) else {
        http.reception.count_request(Protocol::HttpProtobuf, R::SIGNAL, "content_type");
        let message = "content type is neither application/x-protobuf nor application/json".to_owned();
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return error(&http, Encoding::Json, &Failure { status, outcome: "content_type", message });
    };
    let protocol = match encoding {
        Encoding::Protobuf => Protocol::HttpProtobuf,
        Encoding::Json => Protocol::HttpJson,
    };
    match take::<R>(&http, protocol, encoding, request).await {
        Ok(rejected) => answer(encoding, StatusCode::OK, success::<R>(encoding, &rejected)),
        Err(failure) => {
            // A backlog is counted where it is met.
            if failure.outcome != "backlog" {
                http.reception.count_request(protocol, R::SIGNAL, failure.outcome);
            }
            error(&http, encoding, &failure)
        }
    }
}

async fn take<R: ExportRequest>(
    http: &Http,
    protocol: Protocol,
    encoding: Encoding,
    request: Request,
) -> Result<Rejected, Failure> {
    let failure = |status, outcome, message: String| Failure { status, outcome, message };
    let unavailable = |outcome| {
        move |reason: super::reception::Unavailable| {
            failure(StatusCode::SERVICE_UNAVAILABLE, outcome, reason.to_string())
        }
    };
    let _turn = http.reception.turn().await.map_err(unavailable("busy"))?;
    let (parts, body) = request.into_parts();
    let bytes = tokio::select! {
        read = body::read(&parts.headers, body, http.message_max) => read,
        () = http.clock.sleep(body::READ_TIMEOUT) => Err(BodyError::Slow),
    };
    let bytes = bytes.map_err(|error| {
        let outcome = if matches!(error, BodyError::TooLarge { .. }) { "too_large" } else { "malformed" };
        failure(error.status(), outcome, error.to_string())
    })?;
    let message = match encoding {
        Encoding::Protobuf => R::decode(bytes.as_slice()).map_err(|error| error.to_string()),
        Encoding::Json => json::from_slice::<R>(&bytes).map_err(|error| error.to_string()),
    };
    let message = message.map_err(|error| failure(StatusCode::BAD_REQUEST, "malformed", error))?;
    http.reception.take_counted(protocol, message).map_err(unavailable("backlog"))
}

fn success<R: ExportRequest>(encoding: Encoding, rejected: &Rejected) -> Vec<u8> {
    match encoding {
        Encoding::Protobuf => R::response(rejected).encode_to_vec(),
        Encoding::Json if rejected.total() == 0 => b"{}".to_vec(),
        // 64-bit numbers are text in this mapping.
        Encoding::Json => json!({"partialSuccess": {
            R::REJECTED_NAME: rejected.total().to_string(),
            "errorMessage": rejected.to_string(),
        }})
        .to_string()
        .into_bytes(),
    }
}

fn error(http: &Http, encoding: Encoding, failure: &Failure) -> Response<Body> {
    let code = match failure.status {
        StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
        StatusCode::PAYLOAD_TOO_LARGE => Code::ResourceExhausted,
        StatusCode::REQUEST_TIMEOUT => Code::DeadlineExceeded,
        _ => Code::InvalidArgument,
    };
    let status = RpcStatus { code: code as i32, message: failure.message.clone() };
    let body = match encoding {
        Encoding::Protobuf => status.encode_to_vec(),
        Encoding::Json => json!({"code": status.code, "message": status.message}).to_string().into_bytes(),
    };
    let mut response = answer(encoding, failure.status, body);
    if failure.status == StatusCode::SERVICE_UNAVAILABLE {
        // Whole seconds, rounded up: zero would be an invitation to hammer.
        let seconds = http.retry_after.as_secs_f64().ceil().max(1.0) as u64;
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

fn answer(encoding: Encoding, status: StatusCode, body: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(encoding.content_type()));
    response
}
