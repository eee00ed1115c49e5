//! `tapio replay`: recordings through the pipeline, at full speed, in event time.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;

use anyhow::Context;
use flate2::read::MultiGzDecoder;
use tapio_schemas::Finding;

use crate::cli::{Output, ReplayArgs, RunArgs};
use crate::config::TapioConfig;
use crate::recording::{Replay, ReplaySettings};
use crate::render;

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Replays the files and prints each finding revision.
pub fn run(args: &ReplayArgs) -> anyhow::Result<i32> {
    let run = RunArgs {
        config: args.config.clone(),
        data_dir: None,
        nats_url: None,
        overrides: Vec::new(),
        free_ports: false,
    };
    let config = TapioConfig::load(&run)?;
    let settings = ReplaySettings { cluster: args.cluster.clone(), correlator: config.correlator };
    let files = args.files.iter().map(|path| open(path)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut replay = Replay::new(&settings)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut last: Option<Finding> = None;
    replay.run(files, |finding| {
        match args.output {
            Output::Human => writeln!(out, "{}", render::line(&finding))?,
            Output::Json | Output::Jsonl => writeln!(out, "{}", serde_json::to_string(&finding)?)?,
        }
        last = Some(finding);
        Ok(())
    })?;
    if let (Output::Human, Some(finding)) = (args.output, &last) {
        writeln!(out, "\n{}", render::story(finding))?;
    }
    out.flush()?;
    Ok(0)
}

/// Opens plain, gzip or zstd by what is inside, not by the name; `-` is standard input.
fn open(path: &Path) -> anyhow::Result<Box<dyn BufRead>> {
    let raw: Box<dyn Read> = if path == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(File::open(path).with_context(|| format!("cannot open {}", path.display()))?)
    };
    let mut raw = BufReader::new(raw);
    let head = raw.fill_buf().with_context(|| format!("cannot read {}", path.display()))?;
    if head.starts_with(&ZSTD_MAGIC) {
        return Ok(Box::new(BufReader::new(zstd::stream::read::Decoder::with_buffer(raw)?)));
    }
    if head.starts_with(&GZIP_MAGIC) {
        return Ok(Box::new(BufReader::new(MultiGzDecoder::new(raw))));
    }
    Ok(Box::new(raw))
}
