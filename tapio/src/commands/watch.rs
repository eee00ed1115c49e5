//! `tapio watch`: findings as they are persisted.

use tapio_schemas::proto::v1 as api;

use crate::cli::{Output, WatchArgs};
use crate::client::{Client, parse, said};
use crate::render;

/// Prints until the instance ends or Ctrl-C.
pub async fn run(args: WatchArgs) -> anyhow::Result<i32> {
    let mut client = Client::connect(&args.client).await?;
    let request = api::SubscribeRequest {
        include_stored: args.stored,
        entity: args.entity.clone().unwrap_or_default(),
        min_severity: String::new(),
    };
    let mut stream = client.correlation.subscribe(request).await.map_err(said)?.into_inner();
    loop {
        tokio::select! {
            message = stream.message() => {
                let Some(message) = message.map_err(said)? else { return Ok(0) };
                if let Some(finding) = message.finding.as_ref().map(parse).transpose()? {
                    match args.output {
                        Output::Human => println!("{}", render::line(&finding)),
                        Output::Json | Output::Jsonl => println!("{}", serde_json::to_string(&finding)?),
                    }
                }
            }
            _ = tokio::signal::ctrl_c() => return Ok(0),
        }
    }
}
