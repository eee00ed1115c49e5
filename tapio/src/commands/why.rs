//! `tapio why`: the story of one thing, what was said of it, and what it is like.

use serde::Serialize;
use tapio_schemas::finding::Status;
use tapio_schemas::learning::Feedback;
use tapio_schemas::proto::v1 as api;
use tapio_schemas::{Entity, Finding};

use crate::cli::{Output, WhyArgs};
use crate::client::{Client, ID_PREFIX, is_id, parse, parse_feedback, said};
use crate::commands::check::as_told;
use crate::exit::{CANNOT_TELL, FINDINGS};
use crate::render;
use crate::verdict;

/// The answer as JSON: the finding as it was published, and beside it what is known of it since.
#[derive(Serialize)]
struct Answer<'a> {
    #[serde(flatten)]
    finding: &'a Finding,
    #[serde(skip_serializing_if = "Option::is_none")]
    feedback: Option<&'a Feedback>,
    #[serde(skip_serializing_if = "Option::is_none")]
    similar: Option<Similar>,
}

/// The past finding that is most like it.
#[derive(Debug, Serialize)]
pub struct Similar {
    /// The finding.
    pub id: String,
    /// Its title.
    pub title: String,
    /// 0..=1.
    pub similarity: f64,
    /// Where it stands.
    pub status: Status,
    /// Seconds from its first sign to its last, once it is over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovered_after_s: Option<f64>,
    /// Its cause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// What was said of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feedback: Option<Feedback>,
}

/// Asks the instance, prints the story, returns the exit code.
pub async fn run(args: WhyArgs) -> anyhow::Result<i32> {
    let mut client = Client::connect(&args.client).await?;
    let Some((finding, feedback)) = client.why(&args.entity).await? else {
        let is_unheard = is_unheard(&mut client, &args.entity).await?;
        match args.output {
            Output::Human => println!("{}", unknown(&args.entity, is_unheard)),
            Output::Json | Output::Jsonl => println!("null"),
        }
        return Ok(if is_unheard { CANNOT_TELL } else { 0 });
    };
    let similar = most_similar(&mut client, &finding).await?;
    if args.output == Output::Human {
        print!("{}", render::story(&finding));
        print!("{}", render::last_words(&finding, &as_told(std::slice::from_ref(&finding))));
        print!("{}", render::since(feedback.as_ref(), similar.as_ref()));
        return Ok(FINDINGS);
    }
    let answer = Answer { finding: &finding, feedback: feedback.as_ref(), similar };
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&answer)?),
        _ => println!("{}", serde_json::to_string(&answer)?),
    }
    Ok(FINDINGS)
}

async fn most_similar(client: &mut Client, finding: &Finding) -> anyhow::Result<Option<Similar>> {
    let request = api::SimilarRequest { id: finding.id.to_string(), limit: 1 };
    let answer = match client.correlation.similar(request).await {
        Ok(answer) => answer.into_inner(),
        // It was removed meanwhile, or the instance is of an earlier build: the story stands without.
        Err(status) if matches!(status.code(), tonic::Code::NotFound | tonic::Code::Unimplemented) => {
            return Ok(None);
        }
        Err(status) => return Err(said(status)),
    };
    let Some(nearest) = answer.findings.into_iter().next() else { return Ok(None) };
    let Some(other) = nearest.finding.as_ref().map(parse).transpose()? else { return Ok(None) };
    let over = other.status == Status::Recovered;
    Ok(Some(Similar {
        id: other.id.to_string(),
        similarity: nearest.similarity,
        status: other.status,
        recovered_after_s: over.then(|| other.updated_at.since(other.first_bad_at) as f64 / 1e9),
        cause: other.root_cause.as_ref().map(|root| root.cause.to_string()),
        title: other.title,
        feedback: parse_feedback(&nearest.feedback_json)?,
    }))
}

/// True when nobody knows that name. Nobody is asked for an id.
async fn is_unheard(client: &mut Client, entity: &str) -> anyhow::Result<bool> {
    if is_id(entity) || !verdict::is_of_what_runs(&Entity::parse_query(entity)) {
        return Ok(false);
    }
    client.is_unheard(entity).await
}

/// What looks like an id and is none may also be a name.
fn unknown(entity: &str, is_unheard: bool) -> String {
    if entity.starts_with(ID_PREFIX) && !is_id(entity) {
        return format!(
            "nothing is known against {entity}; the id of a finding is `{ID_PREFIX}` and 32 hexadecimal digits"
        );
    }
    if is_unheard { verdict::unknown(entity) } else { format!("nothing is known against {entity}") }
}
