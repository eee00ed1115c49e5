//! `tapio replay`: recordings through the pipeline, at full speed, in event time.

use std::io::Write;

use tapio_schemas::Finding;

use crate::cli::{Output, ReplayArgs, RunArgs};
use crate::config::TapioConfig;
use crate::input;
use crate::recording::{Replay, ReplaySettings};
use crate::render;

/// Replays the files and prints each finding revision.
pub fn run(args: &ReplayArgs) -> anyhow::Result<i32> {
    let run = RunArgs { config: args.config.clone(), ..RunArgs::default() };
    let config = TapioConfig::load(&run)?;
    let settings = ReplaySettings { cluster: args.cluster.clone(), correlator: config.correlator };
    let files = args.files.iter().map(|path| input::open(path)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut replay = Replay::new(&settings)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut last: Option<Finding> = None;
    replay.run(files, |finding| {
        match args.output {
            Output::Human => writeln!(out, "{}", render::line(&finding))?,
            // There is no end at which one document could be closed: both are a document a line.
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
