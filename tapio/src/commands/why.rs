//! `tapio why`: the story of one thing.

use crate::cli::{Output, WhyArgs};
use crate::client::{Client, ID_PREFIX, is_id};
use crate::exit::FINDINGS;
use crate::render;

/// Asks the instance, prints the story, returns the exit code.
pub async fn run(args: WhyArgs) -> anyhow::Result<i32> {
    let mut client = Client::connect(&args.client).await?;
    let Some(finding) = client.why(&args.entity).await? else {
        match args.output {
            Output::Human => println!("{}", unknown(&args.entity)),
            Output::Json | Output::Jsonl => println!("null"),
        }
        return Ok(0);
    };
    match args.output {
        Output::Human => print!("{}", render::story(&finding)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&finding)?),
        Output::Jsonl => println!("{}", serde_json::to_string(&finding)?),
    }
    Ok(FINDINGS)
}

/// What looks like an id and is none may also be a name.
fn unknown(entity: &str) -> String {
    if entity.starts_with(ID_PREFIX) && !is_id(entity) {
        return format!(
            "nothing is known against {entity}; the id of a finding is `{ID_PREFIX}` and 32 hexadecimal digits"
        );
    }
    format!("nothing is known against {entity}")
}
