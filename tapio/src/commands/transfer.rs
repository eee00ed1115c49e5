//! `tapio export` and `tapio import`: the store as JSON lines, so that it survives the cluster.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, bail};
use tapio_runtime::clock::{Clock, SystemClock};
use tapio_schemas::UnixNanos;
use tapio_storage::store::{Store, StoreMetrics, StoreOptions};

use crate::cli::{RunArgs, TransferArgs};
use crate::config::TapioConfig;
use crate::input;

/// Level of compression: the file is written once and kept.
const ZSTD_LEVEL: i32 = 10;

/// Writes every revision in the store, oldest first.
pub fn export(args: &TransferArgs) -> anyhow::Result<i32> {
    let path = store_path(args)?;
    if !path.exists() {
        bail!("there is no store of findings at {}: name its data directory with --data-dir", path.display());
    }
    let store = open(&path)?;
    let count = if args.file == Path::new("-") {
        store.export(&mut BufWriter::new(std::io::stdout().lock()))?
    } else {
        to_file(&store, &args.file)?
    };
    eprintln!("{count} revisions of findings written");
    Ok(0)
}

fn to_file(store: &Store, path: &Path) -> anyhow::Result<u64> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let file = if path.extension().is_some_and(|extension| extension == "zst") {
        let mut encoder = zstd::stream::write::Encoder::new(BufWriter::new(file), ZSTD_LEVEL)?;
        let count = store.export(&mut encoder)?;
        return finish(encoder.finish()?, path, count);
    } else {
        BufWriter::new(file)
    };
    let mut file = file;
    let count = store.export(&mut file)?;
    finish(file, path, count)
}

/// An export counts when it is on disk.
fn finish(mut file: BufWriter<File>, path: &Path, count: u64) -> anyhow::Result<u64> {
    let synced = file.flush().and_then(|()| file.get_ref().sync_all());
    synced.with_context(|| format!("cannot write {}", path.display()))?;
    Ok(count)
}

/// Stores every revision of the file that is not there yet.
pub fn import(args: &TransferArgs) -> anyhow::Result<i32> {
    let mut lines = input::open(&args.file)?;
    let path = store_path(args)?;
    std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    let store = open(&path)?;
    let report = store
        .import(&mut lines, now())
        .with_context(|| format!("cannot import all of {}", args.file.display()))?;
    println!(
        "{} revisions stored, {} known before, {} left out because they are not sure enough, {} with feedback",
        report.stored, report.known, report.low_confidence, report.feedback
    );
    Ok(0)
}

fn store_path(args: &TransferArgs) -> anyhow::Result<std::path::PathBuf> {
    let run = RunArgs { config: args.config.clone(), data_dir: args.data_dir.clone(), ..RunArgs::default() };
    Ok(TapioConfig::load(&run)?.storage.path)
}

fn open(path: &Path) -> anyhow::Result<Store> {
    Ok(Store::open(&StoreOptions::new(path), StoreMetrics::default(), now())?)
}

fn now() -> UnixNanos {
    UnixNanos(SystemClock::new().now_unix_nanos())
}
