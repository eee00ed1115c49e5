//! `tapio record`: events of a running instance as a file that `tapio replay` reads.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::time::Duration;

use anyhow::Context;
use tapio_runtime::bus::{Bus, BusConfig, OrderedConfig, OrderedConsumer, StartAt};
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::UnifiedEvent;
use tapio_schemas::names::{STREAM_EVENTS, SUBJECTS_EVENTS};
use tapio_schemas::wire::{EventBatchView, Unpacker};

use crate::cli::{ClientArgs, RecordArgs};
use crate::client::locate;
use crate::exit::{ExitWith, UNAVAILABLE};

const WAIT: Duration = Duration::from_millis(200);
const BATCH_MESSAGES: usize = 256;
/// Events are written once they are this old, so that lines come in time order.
const REORDER_NS: u64 = 2_000_000_000;

/// Records until Ctrl-C or for the given time.
pub async fn run(args: RecordArgs) -> anyhow::Result<i32> {
    let url = nats_url(args.nats_url.as_deref(), &args.client)?;
    let bus = Bus::connect(&BusConfig { urls: vec![url], ..BusConfig::default() }, &Metrics::new()).await?;
    let mut config = OrderedConfig::new(STREAM_EVENTS);
    config.filters = vec![SUBJECTS_EVENTS.to_owned()];
    config.start = StartAt::New;
    let mut consumer = bus.ordered_consumer(config).await?;
    let file = File::create(&args.file).with_context(|| format!("cannot write {}", args.file.display()))?;
    let compressed = args.file.extension().is_some_and(|e| e == "zst");
    let lines = if compressed {
        let mut encoder = zstd::stream::write::Encoder::new(file, 19)?;
        let lines = record(&args, &mut consumer, &mut encoder).await?;
        encoder.finish()?;
        lines
    } else {
        let mut writer = BufWriter::new(file);
        let lines = record(&args, &mut consumer, &mut writer).await?;
        writer.flush()?;
        lines
    };
    println!("{lines} events in {}", args.file.display());
    Ok(0)
}

/// The NATS server that is named, or that of the running instance.
pub fn nats_url(named: Option<&str>, client: &ClientArgs) -> anyhow::Result<String> {
    if let Some(url) = named {
        return Ok(url.to_owned());
    }
    let (_, endpoints) = locate(client)?;
    endpoints.map(|e| e.nats).ok_or_else(|| {
        ExitWith {
            code: UNAVAILABLE,
            message: "no instance found: name its NATS server with --nats-url".to_owned(),
        }
        .into()
    })
}

async fn record(
    args: &RecordArgs,
    consumer: &mut OrderedConsumer,
    out: &mut impl Write,
) -> anyhow::Result<u64> {
    let end = args.seconds.map(|s| tokio::time::Instant::now() + Duration::from_secs(s));
    let mut waiting: Vec<UnifiedEvent> = Vec::new();
    let (mut lines, mut unpacker) = (0, Unpacker::default());
    loop {
        let done = end.is_some_and(|end| tokio::time::Instant::now() >= end);
        tokio::select! {
            messages = consumer.next_batch(BATCH_MESSAGES, WAIT), if !done => {
                for message in messages? {
                    let view = EventBatchView::check(unpacker.unpack(&message.payload)?)?;
                    waiting.extend(view.to_events().into_iter().filter(|event| wanted(args, event)));
                }
                let newest = waiting.iter().map(|e| e.timestamp).max().unwrap_or_default();
                lines += write_until(&mut waiting, newest.0.saturating_sub(REORDER_NS), out)?;
            }
            _ = tokio::signal::ctrl_c() => return Ok(lines + write_until(&mut waiting, u64::MAX, out)?),
            () = std::future::ready(()), if done => return Ok(lines + write_until(&mut waiting, u64::MAX, out)?),
        }
    }
}

fn wanted(args: &RecordArgs, event: &UnifiedEvent) -> bool {
    args.cgroup.as_deref().is_none_or(|part| event.entity.cgroup.contains(part))
}

fn write_until(waiting: &mut Vec<UnifiedEvent>, until: u64, out: &mut impl Write) -> anyhow::Result<u64> {
    waiting.sort_by_key(|e| (e.timestamp, e.id));
    let ready = waiting.partition_point(|e| e.timestamp.0 <= until);
    for event in waiting.drain(..ready) {
        let line = serde_json::json!({
            "at_unix_nano": event.timestamp.0.to_string(), "signal": "tapio", "request": event,
        });
        writeln!(out, "{line}")?;
    }
    Ok(ready as u64)
}
