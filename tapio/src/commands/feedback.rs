//! `tapio feedback`: what somebody who knows says of a finding.

use anyhow::bail;
use tapio_schemas::learning::Judgement;
use tapio_schemas::proto::v1 as api;

use crate::cli::{FeedbackArgs, Output};
use crate::client::{Client, ID_PREFIX, is_id, parse_feedback, said};

/// Tells the instance; it is kept with the finding.
pub async fn run(args: FeedbackArgs) -> anyhow::Result<i32> {
    if !is_id(&args.id) {
        bail!("`{}` is not the id of a finding, which is `{ID_PREFIX}` and 32 hexadecimal digits", args.id);
    }
    let judgement = if args.right { Judgement::Right } else { Judgement::Wrong };
    let mut client = Client::connect(&args.client).await?;
    let request = api::GiveFeedbackRequest {
        id: args.id,
        judgement: judgement.as_str().to_owned(),
        cause: args.cause.unwrap_or_default(),
        entity: args.entity.unwrap_or_default(),
        fix: args.fix.unwrap_or_default(),
        note: args.note.unwrap_or_default(),
    };
    let answer = client.correlation.give_feedback(request).await.map_err(said)?.into_inner();
    let Some(feedback) = parse_feedback(&answer.feedback_json)? else {
        bail!("the instance did not say what it keeps")
    };
    match args.output {
        Output::Human => println!("kept: {}", crate::render::feedback(&feedback)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&feedback)?),
        Output::Jsonl => println!("{}", serde_json::to_string(&feedback)?),
    }
    Ok(0)
}
