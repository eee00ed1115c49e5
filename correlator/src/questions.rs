//! Whether anything is known of an entity: asked over NATS, answered by the thread that knows, once it has caught up. What was
//! silent for long is forgotten (`incidents.edge_memory`).

use std::time::Duration;

use bytes::Bytes;
use tapio_runtime::bus::{Bus, BusError, QueryError, QueryService};
use tapio_runtime::clock::SharedClock;
use tapio_schemas::Entity;
use tapio_schemas::names::entity_query_subject;
use tokio::sync::{mpsc, oneshot};

/// Questions that wait for the thread; further ones are refused.
pub const QUESTIONS_MAX: usize = 64;
/// Longest text of a question, bytes.
const TEXT_BYTES_MAX: usize = 512;
/// The thread answers between two sections of signals.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(1);

/// One question.
pub struct Question {
    /// Of whom.
    pub of: Entity,
    /// Where the answer goes.
    pub answer: oneshot::Sender<bool>,
}

/// Begins to answer for a cluster, until the service is dropped.
///
/// # Errors
/// When NATS refuses the service.
pub async fn serve(
    bus: &Bus,
    clock: SharedClock,
    cluster: &str,
    questions: mpsc::Sender<Question>,
) -> Result<QueryService, BusError> {
    let description = "whether anything is known of an entity";
    let service = bus.service("tapio-correlator", env!("CARGO_PKG_VERSION"), description).await?;
    let answering = move |query: tapio_runtime::bus::Query| {
        let (questions, clock) = (questions.clone(), clock.clone());
        async move { ask(&questions, &clock, &query.payload).await }
    };
    service.endpoint(&entity_query_subject(cluster), answering).await?;
    Ok(service)
}

async fn ask(
    questions: &mpsc::Sender<Question>,
    clock: &SharedClock,
    text: &[u8],
) -> Result<Bytes, QueryError> {
    let failed = |code, message: &str| QueryError { code, message: message.to_owned() };
    let text = std::str::from_utf8(text).ok().filter(|text| text.len() <= TEXT_BYTES_MAX);
    let of = text.map(Entity::parse_query).filter(|of| !of.name.is_empty());
    let of = of.ok_or_else(|| failed(400, "expected `name`, `kind/name` or `namespace/kind/name`"))?;
    let (answer, answered) = oneshot::channel();
    let refused = |_| failed(503, "too many questions wait, or nobody answers: ask again");
    questions.try_send(Question { of, answer }).map_err(refused)?;
    let heard = tokio::select! {
        heard = answered => heard.ok(),
        () = clock.sleep(ANSWER_TIME_MAX) => None,
    };
    let heard = heard.ok_or_else(|| failed(503, "no answer in time: ask again"))?;
    Ok(Bytes::from(format!("{{\"heard\":{heard}}}")))
}
