//! The same questions over NATS request/reply, as JSON: a micro service on `tapio.v1.query.findings`
//! and `tapio.v1.query.why`.

use bytes::Bytes;
use serde::Deserialize;
use tapio_runtime::bus::{Bus, BusError, QueryError, QueryService};
use tapio_schemas::names::SUBJECT_QUERY_PREFIX;

use super::answers::{Answers, ListAnswer, PAGE_BYTES_MAX};
use super::{ApiError, ListQuestion};

/// Left of the server's limit for headers and the frame of the answer.
const ENVELOPE_BYTES: usize = 8 << 10;

/// `{"entity":"…"}`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WhyQuestion {
    entity: String,
}

/// Starts answering.
///
/// # Errors
/// When NATS refuses the service.
pub async fn serve(bus: &Bus, answers: &Answers) -> Result<QueryService, BusError> {
    let description = "findings: list them, and why something happened";
    let service = bus.service("tapio-storage", env!("CARGO_PKG_VERSION"), description).await?;
    let bytes_max = bus.max_payload().saturating_sub(ENVELOPE_BYTES).min(PAGE_BYTES_MAX);
    let list = answers.clone();
    let findings = format!("{SUBJECT_QUERY_PREFIX}.findings");
    service
        .endpoint(&findings, move |query| {
            let answers = list.clone();
            async move { find(&answers, &query.payload, bytes_max).await.map_err(said) }
        })
        .await?;
    let why = answers.clone();
    service
        .endpoint(&format!("{SUBJECT_QUERY_PREFIX}.why"), move |query| {
            let answers = why.clone();
            async move { explain(&answers, &query.payload).await.map_err(said) }
        })
        .await?;
    Ok(service)
}

async fn find(answers: &Answers, payload: &[u8], bytes_max: usize) -> Result<Bytes, ApiError> {
    let question: ListQuestion = if payload.trim_ascii().is_empty() {
        ListQuestion::default()
    } else {
        serde_json::from_slice(payload).map_err(|error| ApiError::invalid("payload", error))?
    };
    document(&answers.list(&question, bytes_max).await?)
}

async fn explain(answers: &Answers, payload: &[u8]) -> Result<Bytes, ApiError> {
    let question: WhyQuestion =
        serde_json::from_slice(payload).map_err(|error| ApiError::invalid("payload", error))?;
    Ok(answers.why(&question.entity).await?.stored.json.clone())
}

/// The documents go in as they were published; the token is hexadecimal.
fn document(answer: &ListAnswer) -> Result<Bytes, ApiError> {
    let unwritable = |error: serde_json::Error| ApiError::Unavailable(error.to_string());
    let mut json = b"{\"findings\":[".to_vec();
    for (index, stored) in answer.findings.iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        json.extend_from_slice(&stored.json);
    }
    json.extend_from_slice(b"],\"next_page_token\":\"");
    json.extend_from_slice(answer.next_page_token.as_bytes());
    json.extend_from_slice(b"\",\"freshness\":");
    serde_json::to_writer(&mut json, &answer.freshness).map_err(unwritable)?;
    json.extend_from_slice(b",\"gaps\":");
    serde_json::to_writer(&mut json, &answer.gaps).map_err(unwritable)?;
    if let Some(heard) = answer.heard {
        json.extend_from_slice(b",\"heard\":");
        serde_json::to_writer(&mut json, &heard).map_err(unwritable)?;
    }
    json.push(b'}');
    Ok(json.into())
}

fn said(error: ApiError) -> QueryError {
    QueryError { code: error.http_code(), message: error.to_string() }
}
