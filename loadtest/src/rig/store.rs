//! What the storage service answers, over NATS request/reply.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use tapio_runtime::bus::{Bus, BusError};
use tapio_schemas::finding::PERSIST_CONFIDENCE_ABOVE;
use tapio_schemas::names::SUBJECT_QUERY_PREFIX;
use tapio_schemas::{Finding, FindingId};

use super::observe::Seen;
use crate::error::LoadError;
use crate::verdict::Wrong;

const ANSWER_MAX: Duration = Duration::from_secs(10);
const PAGE: u32 = 1000;
/// Pages asked for at most.
const PAGES_MAX: usize = 1000;

#[derive(Deserialize)]
struct Page {
    findings: Vec<Finding>,
    next_page_token: String,
}

/// Every stored finding, newest revision each.
///
/// # Errors
/// When the service does not answer, or not in its own form.
pub async fn findings(bus: &Bus) -> Result<HashMap<FindingId, Finding>, LoadError> {
    let mut all = HashMap::new();
    let mut token = String::new();
    for _ in 0..PAGES_MAX {
        let question = serde_json::json!({ "page_size": PAGE, "page_token": token });
        let question = Bytes::from(question.to_string());
        let answer = bus.request(&format!("{SUBJECT_QUERY_PREFIX}.findings"), question, ANSWER_MAX).await?;
        let page: Page = serde_json::from_slice(&answer)
            .map_err(|error| LoadError::Generator(format!("the store's answer is not a page: {error}")))?;
        for finding in page.findings {
            let newest = all.entry(finding.id).or_insert_with(|| finding.clone());
            if finding.revision > newest.revision {
                *newest = finding;
            }
        }
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    Ok(all)
}

/// What the store lacks or has too much of: it must hold every finding whose newest revision is above its threshold, in
/// that revision.
pub fn differences(stream: &HashMap<FindingId, Seen>, store: &HashMap<FindingId, Finding>) -> Vec<Wrong> {
    let mut wrong = Vec::new();
    for (id, seen) in stream {
        if seen.last.confidence.get() <= PERSIST_CONFIDENCE_ABOVE {
            continue;
        }
        let wanted = seen.last.revision;
        let says = match store.get(id) {
            None => format!("is not stored (revision {wanted} is in the stream)"),
            Some(stored) if stored.revision != wanted => {
                format!("is stored in revision {}, the stream has {wanted}", stored.revision)
            }
            Some(_) => continue,
        };
        wrong.push(Wrong::Store { id: id.to_string(), says });
    }
    for id in store.keys().filter(|id| !stream.contains_key(id)) {
        wrong.push(Wrong::Store { id: id.to_string(), says: "is stored and not in the stream".to_owned() });
    }
    wrong
}

/// Waits until the store holds what the stream holds; gives what it still lacks after `patience`.
///
/// # Errors
/// When the service does not answer for other reasons than being away.
pub async fn settle(
    bus: &Bus,
    stream: impl Fn() -> HashMap<FindingId, Seen>,
    patience: Duration,
) -> Result<Vec<Wrong>, LoadError> {
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        let wrong = match findings(bus).await {
            Ok(stored) => differences(&stream(), &stored),
            Err(LoadError::Bus(BusError::Closed)) => return Err(LoadError::Bus(BusError::Closed)),
            Err(error) => vec![Wrong::Store { id: "the store".to_owned(), says: error.to_string() }],
        };
        if wrong.is_empty() || tokio::time::Instant::now() >= deadline {
            return Ok(wrong);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
