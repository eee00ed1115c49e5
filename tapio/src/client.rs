//! Finding and asking a running instance.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use tapio_schemas::learning::Feedback;
use tapio_schemas::proto::v1 as api;
use tapio_schemas::proto::v1::correlation_service_client::CorrelationServiceClient;
use tapio_schemas::{Finding, FindingId, UnixNanos};
use tonic::transport::{Channel, Endpoint};

use crate::cli::ClientArgs;
use crate::endpoints::{DEFAULT_API_GRPC, Endpoints, default_data_dir};
use crate::exit::{ExitWith, UNAVAILABLE};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Findings asked for at a time.
const PAGE_FINDINGS: u32 = 500;
/// Most findings of one question; beyond it the question fails rather than tell half.
const FINDINGS_MAX: usize = 100_000;

/// Which findings.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// Only those that mention this; empty for all.
    pub entity: &'a str,
    /// Where they stand; empty for all.
    pub status: &'a str,
    /// Updated at or after.
    pub since: UnixNanos,
    /// Only those with a prediction.
    pub with_prediction: bool,
}

/// All findings of a question, and how complete the answer is.
#[derive(Debug, Default)]
pub struct Listing {
    /// Newest first.
    pub findings: Vec<Finding>,
    /// How far the correlators were at the first page.
    pub clusters: Vec<api::ClusterFreshness>,
    /// What the store lacked at any page, each once.
    pub gaps: Vec<String>,
}

/// How ids of findings begin.
pub const ID_PREFIX: &str = "fnd-";

/// A connection to an instance.
pub struct Client {
    /// The service.
    pub correlation: CorrelationServiceClient<Channel>,
    /// Where it is.
    pub address: String,
}

/// `--server`, `TAPIO_SERVER`, endpoints.json of the data directory, else the default address.
pub fn locate(args: &ClientArgs) -> anyhow::Result<(String, Option<Endpoints>)> {
    if let Some(server) = args.server() {
        return Ok((server.to_owned(), None));
    }
    let dir = args.data_dir().map_or_else(default_data_dir, Path::to_path_buf);
    let endpoints = read_endpoints(&dir, args.data_dir().is_some())?;
    let address = endpoints.as_ref().map_or_else(|| DEFAULT_API_GRPC.to_owned(), |e| e.api_grpc.clone());
    Ok((address, endpoints))
}

fn read_endpoints(dir: &Path, named: bool) -> anyhow::Result<Option<Endpoints>> {
    match Endpoints::read(dir)? {
        None if named => Err(ExitWith {
            code: UNAVAILABLE,
            message: format!(
                "no instance runs with data directory {}: start one with `tapio up`",
                dir.display()
            ),
        }
        .into()),
        found => Ok(found),
    }
}

impl Client {
    /// Connects; says what to do when nobody answers.
    pub async fn connect(args: &ClientArgs) -> anyhow::Result<Self> {
        let (address, _) = locate(args)?;
        Self::connect_to(&address).await
    }

    /// Connects to a known address.
    pub async fn connect_to(address: &str) -> anyhow::Result<Self> {
        let url = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
        let endpoint = Endpoint::from_shared(url)
            .with_context(|| format!("`{address}` is not an address, expected host:port"))?
            .connect_timeout(CONNECT_TIMEOUT);
        let channel = endpoint.connect().await.map_err(|error| ExitWith {
            code: UNAVAILABLE,
            message: format!(
                "no instance answers at {address} ({}): start one with `tapio up`, or name it with --server",
                root_of(&error)
            ),
        })?;
        Ok(Self {
            correlation: CorrelationServiceClient::new(channel).max_decoding_message_size(32 << 20),
            address: address.to_owned(),
        })
    }

    /// All findings that match, page by page.
    pub async fn list(&mut self, question: Question<'_>) -> anyhow::Result<Listing> {
        let mut listing = Listing::default();
        let mut page_token = String::new();
        for page in 0.. {
            let answer = self.page(question, PAGE_FINDINGS, page_token).await?;
            for finding in &answer.findings {
                listing.findings.push(parse(finding)?);
            }
            if page == 0 {
                listing.clusters = answer.freshness;
            }
            listing.gaps.extend(answer.gaps);
            if answer.next_page_token.is_empty() {
                break;
            }
            if listing.findings.len() > FINDINGS_MAX {
                anyhow::bail!("more than {FINDINGS_MAX} findings match: ask for one thing, by its name");
            }
            page_token = answer.next_page_token;
        }
        listing.gaps.sort();
        listing.gaps.dedup();
        Ok(listing)
    }

    /// True when there never was a finding on it, and all who would know it answer that they know nothing of that name.
    pub async fn is_unheard(&mut self, entity: &str) -> anyhow::Result<bool> {
        let all = Question { entity, status: "", since: UnixNanos(0), with_prediction: false };
        Ok(self.page(all, 1, String::new()).await?.heard == Some(false))
    }

    async fn page(
        &mut self,
        question: Question<'_>,
        page_size: u32,
        page_token: String,
    ) -> anyhow::Result<api::ListFindingsResponse> {
        let mut request = tonic::Request::new(api::ListFindingsRequest {
            entity: question.entity.to_owned(),
            status: question.status.to_owned(),
            since_unix_nano: question.since.0,
            with_prediction: question.with_prediction,
            page_size,
            page_token,
            ..Default::default()
        });
        request.set_timeout(REQUEST_TIMEOUT);
        Ok(self.correlation.list_findings(request).await.map_err(said)?.into_inner())
    }

    /// The story of one thing and what was said of it; `None` when nothing is known about it.
    pub async fn why(&mut self, entity: &str) -> anyhow::Result<Option<(Finding, Option<Feedback>)>> {
        let answer = if is_id(entity) {
            let request = api::GetFindingRequest { id: entity.to_owned(), revision: 0 };
            let answer = self.correlation.get_finding(request).await.map(tonic::Response::into_inner);
            answer.map(|answer| (answer.finding, answer.feedback_json))
        } else {
            let request = api::WhyRequest { entity: entity.to_owned() };
            let answer = self.correlation.why(request).await.map(tonic::Response::into_inner);
            answer.map(|answer| (answer.finding, answer.feedback_json))
        };
        match answer {
            Ok((finding, said)) => {
                finding.map(|finding| Ok((parse(&finding)?, parse_feedback(&said)?))).transpose()
            }
            Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
            Err(status) => Err(said(status)),
        }
    }
}

/// What was said of a finding; `None` for an empty text.
pub fn parse_feedback(json: &str) -> anyhow::Result<Option<Feedback>> {
    let parsed = Some(json).filter(|json| !json.is_empty()).map(serde_json::from_str).transpose();
    parsed.context("the instance sent feedback this build does not read")
}

/// True for the id of a finding; anything else is a name.
pub fn is_id(text: &str) -> bool {
    text.starts_with(ID_PREFIX) && text.parse::<FindingId>().is_ok()
}

/// The published document of an answer.
pub fn parse(finding: &api::Finding) -> anyhow::Result<Finding> {
    serde_json::from_str(&finding.json).context("the instance sent a finding this build does not read")
}

/// An RPC error as one line.
pub fn said(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("the instance answered {:?}: {}", status.code(), status.message())
}

fn root_of(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last: &dyn std::error::Error = error;
    while let Some(next) = last.source() {
        last = next;
    }
    last.to_string()
}
