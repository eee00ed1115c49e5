//! `tapio loadtest`: load through the real path.

use std::time::SystemTime;

use tapio_loadtest::throughput;
use tapio_runtime::bus::{Bus, BusConfig};
use tapio_runtime::nats_server::{Child, ChildConfig};
use tapio_runtime::telemetry::Metrics;
use tapio_schemas::UnixNanos;

use crate::cli::{LoadtestArgs, Output};

/// Runs against the named server, or one of its own.
pub async fn run(args: LoadtestArgs) -> anyhow::Result<i32> {
    let own = match &args.nats_url {
        Some(_) => None,
        None => Some(own_server()?),
    };
    let url = match (&args.nats_url, &own) {
        (Some(url), _) => url.clone(),
        (None, Some((child, _))) => child.url(),
        (None, None) => unreachable!("a server was named or started"),
    };
    let bus = Bus::connect(&BusConfig { urls: vec![url], ..BusConfig::default() }, &Metrics::new()).await?;
    bus.ensure_streams().await?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos() as u64;
    let report = throughput::run(&bus, args.events, UnixNanos(now)).await?;
    match args.output {
        Output::Human => {
            println!("events              {}", report.events);
            println!("published           {:.0} events/s", report.published_per_s);
            println!("published and read  {:.0} events/s", report.processed_per_s);
            println!("wire size           {:.1} bytes/event", report.bytes_per_event);
            println!("NATS alone          {:.1} MB/s", report.ceiling_bytes_per_s / 1e6);
            println!("share of it         {:.0} %", report.ratio * 100.0);
        }
        Output::Json | Output::Jsonl => println!("{}", serde_json::to_string(&report)?),
    }
    Ok(0)
}

/// A server with a store that goes with the test.
fn own_server() -> anyhow::Result<(Child, StoreDir)> {
    let dir = StoreDir(std::env::temp_dir().join(format!("tapio-loadtest-{}", std::process::id())));
    let child = Child::start(ChildConfig::new(&dir.0))?;
    Ok((child, dir))
}

struct StoreDir(std::path::PathBuf);

impl Drop for StoreDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("tapio: cannot remove {}: {error}", self.0.display());
        }
    }
}
