//! The gRPC API: `tapio.v1.CorrelationService` with reflection and health.

use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use futures::Stream;
use tapio_runtime::shutdown::Shutdown;
use tapio_schemas::learning::Feedback;
use tapio_schemas::proto::v1::correlation_service_server::{CorrelationService, CorrelationServiceServer};
use tapio_schemas::proto::{DESCRIPTORS, v1};
use tokio::net::TcpListener;
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::ApiError;
use super::answers::{Answers, PAGE_BYTES_MAX};
use super::subscribe::{Subscription, Wanted};
use crate::condition::Condition;
use crate::live::Live;
use crate::store::StoredFinding;

/// Largest request.
const REQUEST_BYTES_MAX: usize = 64 << 10;
/// Requests of one connection at a time; more wait.
const REQUESTS_PER_CONNECTION_MAX: usize = 64;
/// Streams of one connection at a time; more are refused.
const STREAMS_PER_CONNECTION_MAX: u32 = 128;
/// A question that takes longer is given up.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);
/// A silent connection is asked whether it lives.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// Answers gRPC requests. Clones share everything.
#[derive(Clone)]
pub struct GrpcApi {
    answers: Answers,
    live: Live,
    /// Ends the subscriptions.
    shutdown: Shutdown,
}

impl GrpcApi {
    /// An API over these answers and this live feed; `shutdown` ends its subscriptions.
    pub fn new(answers: Answers, live: Live, shutdown: Shutdown) -> Self {
        Self { answers, live, shutdown }
    }

    /// Serves on `listener` until the shutdown; lets requests finish.
    ///
    /// # Errors
    /// When the server cannot be built or breaks.
    pub async fn serve(self, listener: TcpListener) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let (shutdown, condition) = (self.shutdown.clone(), self.answers.condition().clone());
        let (health, health_service) = tonic_health::server::health_reporter();
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        let service = CorrelationServiceServer::new(self)
            .max_decoding_message_size(REQUEST_BYTES_MAX)
            .accept_compressed(tonic::codec::CompressionEncoding::Gzip)
            .send_compressed(tonic::codec::CompressionEncoding::Gzip);
        Server::builder()
            .concurrency_limit_per_connection(REQUESTS_PER_CONNECTION_MAX)
            .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .timeout(REQUEST_TIME_MAX)
            .add_service(health_service)
            .add_service(reflection)
            .add_service(service)
            .serve_with_incoming_shutdown(
                TcpIncoming::from(listener).with_nodelay(Some(true)),
                tell_health(condition, shutdown, health),
            )
            .await?;
        Ok(())
    }
}

/// Tells the load balancers when findings cannot be written, and first of all that the service stops.
async fn tell_health(condition: Condition, shutdown: Shutdown, health: HealthReporter) {
    let mut failed = condition.watch();
    loop {
        let serves = failed.borrow_and_update().is_none();
        say(&health, serves).await;
        tokio::select! {
            biased;
            () = shutdown.wait() => break,
            changed = failed.changed() => if changed.is_err() { break },
        }
    }
    say(&health, false).await;
}

/// For the service by name, and for the server as a whole.
async fn say(health: &HealthReporter, serves: bool) {
    let status = if serves { ServingStatus::Serving } else { ServingStatus::NotServing };
    for name in [CorrelationServiceServer::<GrpcApi>::NAME, ""] {
        health.set_service_status(name, status).await;
    }
}

/// Binds the address; port 0 takes a free one.
///
/// # Errors
/// When the address is taken or wrong.
pub async fn bind(listen: &str) -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(listen).await?;
    let addr = listener.local_addr()?;
    Ok((listener, addr))
}

#[tonic::async_trait]
impl CorrelationService for GrpcApi {
    type SubscribeStream =
        Pin<Box<dyn Stream<Item = Result<v1::SubscribeResponse, Status>> + Send + 'static>>;

    async fn list_findings(
        &self,
        request: Request<v1::ListFindingsRequest>,
    ) -> Result<Response<v1::ListFindingsResponse>, Status> {
        let answer = self.answers.list(&request.into_inner().into(), PAGE_BYTES_MAX).await?;
        Ok(Response::new(v1::ListFindingsResponse {
            findings: answer.findings.iter().map(|stored| message(stored)).collect(),
            next_page_token: answer.next_page_token,
            freshness: answer.freshness.iter().map(v1::ClusterFreshness::from).collect(),
            gaps: answer.gaps,
            heard: answer.heard,
        }))
    }

    async fn get_finding(
        &self,
        request: Request<v1::GetFindingRequest>,
    ) -> Result<Response<v1::GetFindingResponse>, Status> {
        let request = request.into_inner();
        let told = self.answers.get(&request.id, request.revision).await?;
        let finding = Some(message(&told.stored));
        Ok(Response::new(v1::GetFindingResponse { finding, feedback_json: document(&told.feedback) }))
    }

    async fn why(&self, request: Request<v1::WhyRequest>) -> Result<Response<v1::WhyResponse>, Status> {
        let told = self.answers.why(&request.into_inner().entity).await?;
        let finding = Some(message(&told.stored));
        Ok(Response::new(v1::WhyResponse { finding, feedback_json: document(&told.feedback) }))
    }

    async fn subscribe(
        &self,
        request: Request<v1::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let wanted = Wanted::check(&request.into_inner())?;
        let follower = self.live.follow();
        let follower = follower.ok_or_else(|| {
            ApiError::Busy("all places for subscribers are taken (storage.subscribers)".to_owned())
        })?;
        let subscription = Subscription::open(&self.answers, follower, wanted, self.shutdown.clone()).await?;
        let findings = futures::stream::unfold(Some(subscription), |subscription| async {
            let mut subscription = subscription?;
            match subscription.next().await {
                Ok(stored) => {
                    let response = v1::SubscribeResponse { finding: Some(message(&stored)) };
                    Some((Ok(response), Some(subscription)))
                }
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(findings)))
    }

    async fn give_feedback(
        &self,
        request: Request<v1::GiveFeedbackRequest>,
    ) -> Result<Response<v1::GiveFeedbackResponse>, Status> {
        let feedback = self.answers.give_feedback(request.into_inner().into()).await?;
        Ok(Response::new(v1::GiveFeedbackResponse { feedback_json: document(&Some(feedback)) }))
    }

    async fn list_causes(
        &self,
        request: Request<v1::ListCausesRequest>,
    ) -> Result<Response<v1::ListCausesResponse>, Status> {
        let causes = self.answers.causes(&request.into_inner().cluster).await?;
        Ok(Response::new(v1::ListCausesResponse {
            causes: causes.iter().map(v1::LearntCause::from).collect(),
        }))
    }

    async fn reset_causes(
        &self,
        request: Request<v1::ResetCausesRequest>,
    ) -> Result<Response<v1::ResetCausesResponse>, Status> {
        let request = request.into_inner();
        let causes = self.answers.forget_learnt(&request.cluster, &request.cause).await?;
        Ok(Response::new(v1::ResetCausesResponse { causes }))
    }

    async fn similar(
        &self,
        request: Request<v1::SimilarRequest>,
    ) -> Result<Response<v1::SimilarResponse>, Status> {
        let request = request.into_inner();
        let similar = self.answers.similar(&request.id, request.limit).await?;
        let findings = similar.iter().map(|(similarity, told)| v1::SimilarFinding {
            finding: Some(message(&told.stored)),
            similarity: *similarity,
            feedback_json: document(&told.feedback),
        });
        Ok(Response::new(v1::SimilarResponse { findings: findings.collect() }))
    }
}

/// Empty when nothing was said.
fn document(feedback: &Option<Feedback>) -> String {
    feedback.as_ref().and_then(|said| serde_json::to_string(said).ok()).unwrap_or_default()
}

/// The document is given as it was published.
fn message(stored: &StoredFinding) -> v1::Finding {
    let json = String::from_utf8_lossy(&stored.json).into_owned();
    v1::Finding { json, ..v1::Finding::from(&stored.finding) }
}
