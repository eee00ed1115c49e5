//! `tapio watch`: findings as they are persisted, or with `--news` what happens, before there is a verdict.

use anyhow::Context;
use tapio_runtime::bus::{Bus, BusConfig};
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::Signal;
use tapio_schemas::names::SUBJECTS_NEWS;
use tapio_schemas::proto::v1 as api;
use tapio_schemas::wire::SignalBatchView;

use crate::cli::{Output, WatchArgs};
use crate::client::{Client, parse, said};
use crate::commands::record::nats_url;
use crate::render;

/// Prints until the instance ends or Ctrl-C.
pub async fn run(args: WatchArgs) -> anyhow::Result<i32> {
    if args.news {
        return news(&args).await;
    }
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

/// First words of news: at most once, and only while it listens. Each is said again in a signal, and where it matters in
/// a finding.
async fn news(args: &WatchArgs) -> anyhow::Result<i32> {
    let url = nats_url(args.nats_url.as_deref(), &args.client)?;
    let bus = Bus::connect(&BusConfig { urls: vec![url], ..BusConfig::default() }, &Metrics::new()).await?;
    let mut words = bus.subscribe(SUBJECTS_NEWS).await?;
    eprintln!("listening; what is printed is not yet a verdict");
    loop {
        tokio::select! {
            message = words.next() => {
                let Some(message) = message else { return Ok(0) };
                let view = SignalBatchView::check(&message.payload).context("a message of news does not decode")?;
                let section = view.to_section();
                for signal in section.signals.iter().filter(|signal| concerns(args.entity.as_deref(), signal)) {
                    match args.output {
                        Output::Human => println!("{}", render::news(signal)),
                        Output::Json | Output::Jsonl => println!("{}", serde_json::to_string(signal)?),
                    }
                }
            }
            _ = tokio::signal::ctrl_c() => return Ok(0),
        }
    }
}

/// Whether the thing or the other end is named so, as a whole or by its name.
fn concerns(entity: Option<&str>, signal: &Signal) -> bool {
    let Some(wanted) = entity else { return true };
    let ends = [Some(signal.entity.subject()), Some(signal.entity.owner()), signal.peer.clone()];
    ends.iter().flatten().any(|end| end.name == wanted || end.to_string().contains(wanted))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tapio_schemas::{EntityRef, SignalKind, UnixNanos};

    use super::*;

    #[test]
    fn news_says_time_what_and_where_and_that_it_is_no_verdict() {
        let entity = EntityRef {
            namespace: "shop".into(),
            workload_kind: "Deployment".into(),
            workload: "api".into(),
            pod: "api-1".into(),
            container: "app".into(),
            ..EntityRef::default()
        };
        let at = UnixNanos(1_700_000_000_123_000_000);
        let mut signal = Signal::new(SignalKind::OomKill, Arc::new(entity.sealed()), None, at);
        signal.attributes.push(tapio_schemas::Attribute::new("comm", "server"));
        let line = render::news(&signal);
        for part in ["22:13:20.123", "memory.oom_kill", "api-1", "server", "not yet a verdict"] {
            assert!(line.contains(part), "{line}");
        }
        assert!(concerns(Some("shop/Deployment/api"), &signal) || concerns(Some("api"), &signal));
        assert!(concerns(None, &signal) && !concerns(Some("db"), &signal));
    }
}
