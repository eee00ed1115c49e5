//! `tapio record`: events of a running instance as a file that `tapio replay` reads.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::time::Duration;

use anyhow::Context;
use tapio_runtime::bus::{Bus, BusConfig, BusError, Message, OrderedConfig, OrderedConsumer, StartAt};
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::UnifiedEvent;
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
    let mut consumers = Vec::new();
    for stream in bus.stored_events_streams().await? {
        let config = OrderedConfig { start: StartAt::New, ..OrderedConfig::new(stream) };
        consumers.push(bus.ordered_consumer(config).await?);
    }
    anyhow::ensure!(!consumers.is_empty(), "there is no stream of events on this NATS server");
    let file = File::create(&args.file).with_context(|| format!("cannot write {}", args.file.display()))?;
    let compressed = args.file.extension().is_some_and(|e| e == "zst");
    let lines = if compressed {
        let mut encoder = zstd::stream::write::Encoder::new(file, 19)?;
        let lines = record(&args, &mut consumers, &mut encoder).await?;
        encoder.finish()?;
        lines
    } else {
        let mut writer = BufWriter::new(file);
        let lines = record(&args, &mut consumers, &mut writer).await?;
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
    consumers: &mut [OrderedConsumer],
    out: &mut impl Write,
) -> anyhow::Result<u64> {
    let end = args.seconds.map(|s| tokio::time::Instant::now() + Duration::from_secs(s));
    let mut waiting: Vec<UnifiedEvent> = Vec::new();
    let (mut lines, mut read, mut unpacker) = (0, Vec::new(), Unpacker::default());
    loop {
        let is_over = tokio::select! {
            outcome = next(consumers, &mut read) => {
                outcome?;
                end.is_some_and(|end| tokio::time::Instant::now() >= end)
            }
            _ = tokio::signal::ctrl_c() => true,
        };
        for message in read.drain(..) {
            let view = EventBatchView::check(unpacker.unpack(&message.payload)?)?;
            waiting.extend(view.to_events().into_iter().filter(|event| wanted(args, event)));
        }
        if is_over {
            return Ok(lines + write_until(&mut waiting, u64::MAX, out)?);
        }
        let newest = waiting.iter().map(|e| e.timestamp).max().unwrap_or_default();
        lines += write_until(&mut waiting, newest.0.saturating_sub(REORDER_NS), out)?;
    }
}

/// Adds what is there now in all streams, or comes soon. Cancelling it loses nothing.
async fn next(consumers: &mut [OrderedConsumer], read: &mut Vec<Message>) -> Result<(), BusError> {
    let wait = WAIT / u32::try_from(consumers.len()).unwrap_or(u32::MAX);
    for consumer in consumers {
        read.extend(consumer.next_batch(BATCH_MESSAGES, wait).await?);
    }
    Ok(())
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
